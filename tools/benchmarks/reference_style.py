"""A training step that does per step what the public code of the paper does, on our modules and weights.

The arm to compare with. Everything that is not listed here is as in fx_d2, so that losses agree (a test compares them
in float64). Listed is what the public code does, as it was read there and checked by running it:

1. The graph of the teacher is kept: its parameters ask for gradients and no `no_grad` stands around it; the backward
   pass runs through it, and its gradients pile up. It runs in evaluation mode, so without denoising queries.
2. Localization compares the teacher with a `copy.deepcopy` of the student, made anew in every step, in evaluation mode
   and with a graph: decoder states of all layers and the encoder's tokens at the queries. No gradient of it reaches the
   student; the backward pass runs through the copy all the same.
3. Segmentation compares the last lateral map and the fused map, classification the pooled feature.
4. A lock is `requires_grad = False` on parameters, nothing else: everything stays in training mode, and so does the
   teacher's graph. In a locked localization pass the projections in front of the encoder go on learning, so that the
   graph of the frozen encoder is kept.
5. The sum of the squared weights of the encoder's layers is added to the loss of localization.
6. Attention is not fused: the trunk's, the decoder's (`nn.MultiheadAttention` with weights), and deformable attention
   by `grid_sample`, where the samples of all levels are stacked before they are weighted. Nothing is rectified in
   place.
7. The set loss is computed layer by layer and image by image (`reference_losses`).
8. AdamW and gradient clipping (localization only) are torch's as they are called without further options: on a CPU,
   AdamW goes parameter by parameter. The teacher's average always does.
9. On a GPU each step ends with `synchronize` and `empty_cache`.

Not done, though the public code does: recomputing the trunk's activations, unless the config asks for it (the memory
section shows both); a second head for the boxes of each layer; moving the batch to the device and reading it. The
public code has a CUDA kernel for deformable attention: on a GPU this arm is slower than it in point 6.
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
"""Beginnings of the names that a lock freezes, and of those that it leaves all the same."""


class PlainDeformableAttention(DeformableAttention):
    """By `grid_sample`; the samples of all levels are stacked before they are weighted."""

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """See `DeformableAttention.forward`; images are not padded here."""
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
    """Its attention among queries also gives the weights, which nobody reads."""

    def forward(
        self, x: Tensor, positions: Tensor, references: Tensor, tokens: Tensor, memory: Any, blocked: Tensor | None
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        query = x + positions
        if blocked is not None and len(blocked) < x.shape[1]:  # rows of denoising queries alone
            rest = blocked.new_zeros(x.shape[1] - len(blocked), x.shape[1])
            rest[:, : len(blocked)] = True
            blocked = torch.cat((blocked, rest))
        attend = nn.MultiheadAttention.forward
        seen, _ = attend(self.self_attention, query, query, x, attn_mask=blocked, need_weights=True)
        x = self.self_norm(x + seen)
        seen = self.cross_attention(x + positions, references, tokens, memory.shapes, memory.padding)
        return self.ffn(self.cross_norm(x + seen))


class PlainFeedForward(FeedForward):
    """Keeps what it rectifies until the result is there."""

    def forward(self, x: Tensor) -> Tensor:
        """See `FeedForward.forward`."""
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    DeformableAttention: PlainDeformableAttention,
    DecoderLayer: PlainDecoderLayer,
    FeedForward: PlainFeedForward,
}


def unfuse(model: FoundationX) -> FoundationX:
    """The same model and weights with the plain forms of everything that is fused; changed in place.

    Raises:
        TypeError: a module of a kind that has a plain form is of a subclass, whose plain form is not known.
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
    """A student, a teacher and an optimizer, stepped as the public code does.

    Args:
        cfg: of `world.make_cfg`, float32.
        weights: the student's first weights; None = drawn.
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
        """Freeze for a phase, and take a batch, samples of a training mapper, for its steps."""
        self._phase, self._batch = phase, batch
        self.model.train()
        for name, parameter in self.model.named_parameters():
            frozen = name.startswith(_FROZEN.get(phase.task, ())) and not name.startswith(_FREE.get(phase.task, ()))
            parameter.requires_grad_(phase.mode == "release" or not frozen)

    def step(self) -> dict[str, Tensor]:
        """One step; the losses of the task, unweighted."""
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
        if not math.isfinite(float(loss)):
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
        """The teacher's average, parameter by parameter; buffers are left."""
        for mine, theirs in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            mine.mul_(self.momentum).add_((1 - self.momentum) * theirs)

    @staticmethod
    def losses(model: FoundationX, batch: list[dict[str, Any]], phase: Phase) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Unweighted losses of the student, and what of it is compared with the teacher (not of localization)."""
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
        """What of a model is compared with another one."""
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
    """The segmentation decoder's map, and the two maps that are compared, each position's vector of length 1."""
    with _watched(model.seg_decoder.laterals[-1]) as lateral:
        fused = model.seg_decoder(list(features.values()))
    return fused, [F.normalize(lateral[0], dim=1), F.normalize(fused, dim=1)]


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what a module gives."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
