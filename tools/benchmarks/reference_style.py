"""A training step that works as in the paper's public code, on our modules and weights.

The baseline. Everything not listed here is as in fx_d2, so the losses agree (a test compares them in float64). The
public code, as read and confirmed by running it, does the following:

1. The teacher's autograd graph is kept: its parameters require grad and it does not run under `no_grad`; the backward
   pass runs through it, and its gradients accumulate. It runs in evaluation mode, so without denoising queries.
2. Localization compares the teacher with a `copy.deepcopy` of the student, created in every step, in evaluation mode
   and with gradients enabled: decoder states of all layers and the encoder's tokens at the queries. None of its
   gradients reach the student, but the backward pass runs through the copy all the same.
3. Segmentation compares the last lateral map and the fused map, classification the pooled feature.
4. A lock only sets `requires_grad = False` on parameters: everything stays in training mode, and the teacher's graph is
   kept. In a locked localization pass the input projections of the encoder stay trainable, so the autograd graph of the
   frozen encoder is kept.
5. The sum of the squared weights of the encoder's layers is added to the localization loss.
6. Attention is not fused: in the backbone, in the decoder (`nn.MultiheadAttention` returning weights), and in
   deformable attention by `grid_sample`, which stacks the samples of all levels before weighting them. ReLU is not in
   place.
7. The set loss is computed layer by layer and image by image (`reference_losses`).
8. AdamW and gradient clipping (localization only) are torch's with default options: on a CPU, AdamW loops over
   parameters. The teacher's EMA always does.
9. On a GPU each step ends with `synchronize` and `empty_cache`.

The public code also does the following, which is left out here: recomputing the backbone's activations, unless the
config enables it (the memory section shows both); a second box head for each layer; loading the batch and moving it to
the device. It has a CUDA kernel for deformable attention: on a GPU, this baseline is slower than it in point 6.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference_losses import set_criterion
from fx_d2.engine.optimizer import build_optimizer
from fx_d2.layers.deformable_attention import DeformableAttention
from fx_d2.losses import classification_loss, dice_loss
from fx_d2.modeling import FoundationX
from fx_d2.modeling.backbone import normalize_images
from fx_d2.modeling.detr.decoder import DecoderLayer
from fx_d2.modeling.detr.encoder import FeedForward
from fx_d2.structures import Phase

_ENCODER_DECAY = 1e-4
_FROZEN = {"loc": ("backbone.", "cls_heads.", "loc_encoder.layers."), "seg": ("",)}
_FREE = {"loc": (), "seg": ("seg_heads.",)}
"""Parameter name prefixes that a lock freezes, and exceptions that stay trainable."""


class PlainDeformableAttention(DeformableAttention):
    """Uses `grid_sample` and stacks the samples of all levels before weighting them."""

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """See `DeformableAttention.forward`; padding is ignored."""
        del padding
        batch, queries, dim = query.shape
        value = self.value_proj(tokens).view(batch, -1, self.heads, dim // self.heads)
        offsets = self.sampling_offsets(query).view(batch, queries, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, queries, self.heads, -1).softmax(-1)
        if references.shape[-1] == 2:
            sizes = offsets.new_tensor([(w, h) for h, w in shapes])
            places = references[:, :, None, :, None] + offsets / sizes[:, None]
        else:
            boxes = references[:, :, None, :, None]
            places = boxes[..., :2] + offsets / self.points * boxes[..., 2:] * 0.5
        grids = (2 * places - 1).to(value.dtype)
        sampled = []
        for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
            image = part.flatten(2).transpose(1, 2).reshape(batch * self.heads, -1, *shapes[level])
            grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
            sampled.append(F.grid_sample(image, grid, padding_mode="zeros", align_corners=False))
        mass = weights.transpose(1, 2).reshape(batch * self.heads, 1, queries, -1)
        out = (torch.stack(sampled, dim=-2).flatten(-2) * mass).sum(-1)
        return self.output_proj(out.view(batch, dim, queries).transpose(1, 2))


class PlainDecoderLayer(DecoderLayer):
    """Self-attention also returns its weights, which are not used."""

    def forward(
        self, x: Tensor, positions: Tensor, references: Tensor, tokens: Tensor, memory: Any, blocked: Tensor | None
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        query = x + positions
        if blocked is not None and len(blocked) < x.shape[1]:  # it has only the denoising queries' rows
            rest = blocked.new_zeros(x.shape[1] - len(blocked), x.shape[1])
            rest[:, : len(blocked)] = True
            blocked = torch.cat((blocked, rest))
        attend = nn.MultiheadAttention.forward
        seen, _ = attend(self.self_attention, query, query, x, attn_mask=blocked, need_weights=True)
        x = self.self_norm(x + seen)
        seen = self.cross_attention(x + positions, references, tokens, memory.shapes, memory.padding)
        return self.ffn(self.cross_norm(x + seen))


class PlainFeedForward(FeedForward):
    """ReLU is not in place, so its input is kept."""

    def forward(self, x: Tensor) -> Tensor:
        """See `FeedForward.forward`."""
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    DeformableAttention: PlainDeformableAttention,
    DecoderLayer: PlainDecoderLayer,
    FeedForward: PlainFeedForward,
}


def unfuse(model: FoundationX) -> FoundationX:
    """Replace everything that is fused by its plain form, in place; weights are kept.

    Raises:
        TypeError: a module is a subclass of one with a plain form, but has none itself.
    """
    for module in model.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
        if isinstance(module, tuple(_PLAIN)) and type(module) not in _PLAIN.values():
            raise TypeError(f"{type(module).__name__} has no plain form")
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    model.backbone.fused_attention = False
    return model


class ReferenceStyle:
    """A student, a teacher and an optimizer, stepped as in the public code.

    Args:
        cfg: from `world.make_cfg`, float32.
        weights: the student's initial weights; None = random.
    """

    def __init__(self, cfg: CfgNode, weights: dict[str, Tensor] | None = None) -> None:
        self.model: FoundationX = unfuse(build_model(cfg))
        if weights is not None:
            self.model.load_state_dict(weights)
        groups = build_optimizer(cfg, self.model).param_groups
        kept = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]
        self.optimizer = torch.optim.AdamW(kept)
        self.teacher = copy.deepcopy(self.model).requires_grad_(True).eval()
        self.momentum, self.clip = cfg.MODEL.TEACHER.MOMENTUM, cfg.SOLVER.CLIP_NORM
        self._phase: Phase | None = None
        self._batch: list[dict[str, Any]] = []

    def enter(self, phase: Phase, batch: list[dict[str, Any]]) -> None:
        """Freeze for a phase, and set the batch of its steps, samples from a training mapper."""
        self._phase, self._batch = phase, batch
        self.model.train()
        for name, parameter in self.model.named_parameters():
            frozen = name.startswith(_FROZEN.get(phase.task, ())) and not name.startswith(_FREE.get(phase.task, ()))
            parameter.requires_grad_(phase.mode == "release" or not frozen)

    def step(self) -> dict[str, Tensor]:
        """One step; returns the task's unweighted losses."""
        phase, c = self._phase, self.model.consistency
        assert phase is not None, "enter a phase first"
        losses, states = self.losses(self.model, self._batch, phase)
        student = states
        if phase.task == "loc":
            student = self.states(copy.deepcopy(self.model).eval(), self._batch, phase)
        teacher = self.states(self.teacher, self._batch, phase)
        apart = torch.stack([F.mse_loss(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]).mean()
        loss = (1 - c) * torch.stack(list(losses.values())).sum() + c * apart
        if phase.task == "loc":
            for parameter in self.model.loc_encoder.layers.parameters():
                loss = loss + _ENCODER_DECAY * parameter.square().sum()
        if not math.isfinite(loss.item()):
            raise FloatingPointError("the reference-style step's loss is not finite")
        self.optimizer.zero_grad()
        loss.backward()
        if limit := self.clip[phase.task.upper()]:
            nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        if loss.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return {key: value.detach() for key, value in losses.items()}

    @torch.no_grad()
    def end_pass(self) -> None:
        """Update the teacher's EMA in a loop over parameters; buffers are not updated."""
        for mine, theirs in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            mine.mul_(self.momentum).add_((1 - self.momentum) * theirs)

    @staticmethod
    def losses(model: FoundationX, batch: list[dict[str, Any]], phase: Phase) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Unweighted losses of the student, and its tensors to compare with the teacher (none for localization)."""
        features = _features(model, batch)
        if phase.task == "cls":
            pooled = model.backbone.pooled(features)
            labels = torch.stack([x["labels"] for x in batch]).to(model.device)
            return {"bce": classification_loss(model.cls_heads[phase.dataset](pooled), labels)}, [pooled]
        if phase.task == "loc":
            memory = model.loc_encoder(model.backbone.levels(features), None)
            instances = [x["instances"] for x in batch]
            return set_criterion(model.loc_decoders[phase.dataset], memory, instances, model.loc), []
        fused, states = _fused(model, features)
        logits = model.seg_heads[phase.dataset](fused)
        logits = F.interpolate(logits, batch[0]["image"].shape[-2:], mode="bilinear", align_corners=False)
        truth = (torch.stack([x[key] for x in batch]).to(model.device) for key in ("masks", "mask_known", "mask_valid"))
        return {"dice": dice_loss(logits, *truth, model.dice_per_class)}, states

    @staticmethod
    def states(model: FoundationX, batch: list[dict[str, Any]], phase: Phase) -> list[Tensor]:
        """The tensors of a model that are compared with another model's."""
        features = _features(model, batch)
        if phase.task == "cls":
            pooled = model.backbone.pooled(features)
            model.cls_heads[phase.dataset](pooled)
            return [pooled]
        if phase.task == "seg":
            fused, states = _fused(model, features)
            model.seg_heads[phase.dataset](fused)
            return states
        memory = model.loc_encoder(model.backbone.levels(features), None)
        decoder = model.loc_decoders[phase.dataset]
        stack = decoder if memory.stack is None else memory.stack
        with _watched(stack.norm) as layers, _watched(decoder.proposal_norm) as tokens:
            out = decoder(memory)
        rows = torch.arange(len(batch), device=out.selected.device)[:, None]
        return [torch.stack(layers), tokens[0][rows, out.selected]]


def _features(model: FoundationX, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    images = torch.stack([x["image"].to(model.device) for x in batch])
    return model.backbone(normalize_images(images, model.pixel_mean, model.pixel_std))


def _fused(model: FoundationX, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The segmentation decoder's output, and the two maps that are compared, with unit vectors at each position."""
    with _watched(model.seg_decoder.laterals[-1]) as lateral:
        fused = model.seg_decoder(list(features.values()))
    return fused, [F.normalize(lateral[0], dim=1), F.normalize(fused, dim=1)]


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects a module's outputs."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
