"""One dataset's localization decoder: query selection, iterative refinement, class and box heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import MLP

from fx_d2.layers.boxes import inverse_sigmoid
from fx_d2.layers.checkpointing import run_layer
from fx_d2.layers.constants import constant
from fx_d2.layers.deformable_attention import DeformableAttention
from fx_d2.layers.position_encoding import encode_boxes
from fx_d2.layers.query_attention import QueryAttention
from fx_d2.modeling.detr.denoising import NoisedQueries
from fx_d2.modeling.detr.encoder import FeedForward, Memory, init_linear, token_centres

_PRIOR = -math.log((1 - 0.01) / 0.01)
"""Bias at which every class starts with probability 0.01 (focal loss, Lin et al., 2017)."""


@dataclass(frozen=True)
class DecoderOutput:
    """Output of a decoder.

    Attributes:
        logits: (layers, B, P + Q, K); the P denoising queries come first.
        boxes: (layers, B, P + Q, 4) (cx, cy, w, h) in [0, 1].
        proposal_logits: (B, Q, K) of the selected tokens.
        proposal_boxes: (B, Q, 4) of the selected tokens.
        selected: (B, Q) int64, the tokens chosen as queries, best first.
    """

    logits: Tensor
    boxes: Tensor
    proposal_logits: Tensor
    proposal_boxes: Tensor
    selected: Tensor


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention to the memory, feed-forward; post-norm."""

    def __init__(self, *, dim: int, heads: int, levels: int, points: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attention = QueryAttention(dim=dim, heads=heads)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim=dim, heads=heads, levels=levels, points=points)
        self.cross_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)

    def forward(
        self, x: Tensor, positions: Tensor, references: Tensor, tokens: Tensor, memory: Memory, blocked: Tensor | None
    ) -> Tensor:
        """(B, Q, C) queries and positions, (B, Q, levels, 4) references, (B, N, C) tokens -> (B, Q, C)."""
        x = self.self_norm(x + self.self_attention(x + positions, x, blocked))
        seen = self.cross_attention(x + positions, references, tokens, memory.shapes, memory.padding)
        return self.ffn(self.cross_norm(x + seen))


class DecoderStack(nn.Module):
    """The part of a decoder without class-specific weights or queries, which datasets can share (Foundation X+).

    Args: as for `LocDecoder`.
    """

    layers: nn.ModuleList
    norm: nn.LayerNorm
    position_head: MLP

    def __init__(self, *, dim: int, heads: int, levels: int, points: int, ffn_dim: int, layers: int) -> None:
        super().__init__()
        _add_stack(self, dim=dim, heads=heads, levels=levels, points=points, ffn_dim=ffn_dim, layers=layers)


def _add_stack(module: nn.Module, *, dim: int, heads: int, levels: int, points: int, ffn_dim: int, layers: int) -> None:
    module.layers = nn.ModuleList(
        DecoderLayer(dim=dim, heads=heads, levels=levels, points=points, ffn_dim=ffn_dim) for _ in range(layers)
    )
    module.norm = nn.LayerNorm(dim)
    module.position_head = position_head = MLP(2 * dim, [dim, dim])
    init_linear(position_head)


class LocDecoder(nn.Module):
    """Localization decoder of one dataset.

    Args:
        num_classes: logits per query; there is no background class.
        num_queries: queries selected from the tokens (all tokens if there are fewer).
        dim: token size.
        heads: attention heads.
        levels: levels of the memory.
        points: sampling points per head and level.
        ffn_dim: hidden size of the feed-forward blocks.
        layers: number of decoder layers.
        box_temperature: of the sine encoding of query boxes.
        tie_box_heads: one head refines the references and predicts the output boxes (DINO);
            False: two heads with separate weights, the refining one before the norm (the reference).
        label_rows: number of label embeddings for denoising queries; None = `num_classes`.
        rank_all_tokens: padding and border tokens can be selected as queries, too (the reference);
            False: they are selected only when no other tokens are left.
        shared_stack: the layers come with the memory (`Memory.stack`); the dataset has only its own queries and heads.
        grad_checkpointing: recompute the layers in the backward pass.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_queries: int,
        dim: int,
        heads: int,
        levels: int,
        points: int,
        ffn_dim: int,
        layers: int,
        box_temperature: float,
        tie_box_heads: bool,
        label_rows: int | None = None,
        rank_all_tokens: bool = False,
        shared_stack: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.num_classes, self.num_queries = dim, num_classes, num_queries
        self.box_temperature, self.rank_all_tokens = box_temperature, rank_all_tokens
        self.grad_checkpointing = grad_checkpointing
        self.memory_proj = nn.Linear(dim, dim)
        self.proposal_proj = nn.Linear(dim, dim)
        self.proposal_norm = nn.LayerNorm(dim)
        self.proposal_class = _class_head(dim, num_classes)
        self.proposal_box = _box_head(dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        for part in (self.memory_proj, self.proposal_proj):
            init_linear(part)
        # As in DINO: small values, so a query initially carries position rather than content.
        nn.init.xavier_uniform_(self.query_embed.weight)
        self.label_embed = nn.Embedding(num_classes if label_rows is None else label_rows, dim)
        if not shared_stack:
            _add_stack(self, dim=dim, heads=heads, levels=levels, points=points, ffn_dim=ffn_dim, layers=layers)
        self.class_head = _class_head(dim, num_classes)
        self.box_head = _box_head(dim)
        # Refined boxes are used only by the next layer.
        self.refine_head = None if tie_box_heads or layers == 1 else _box_head(dim)

    def forward(self, memory: Memory, noised: NoisedQueries | None = None) -> DecoderOutput:
        """Select queries from the memory and refine them; denoising queries from `noised` are prepended."""
        tokens = self.memory_proj(memory.tokens)
        logits, boxes, selected = self._propose(tokens, memory)
        starts = boxes.detach()
        content = self.query_embed.weight[: selected.shape[1]].expand(tokens.shape[0], -1, -1)
        blocked = None
        if noised is not None:
            known = self.label_embed(noised.labels) * noised.real[..., None]
            content = torch.cat((known, content), dim=1)
            starts = torch.cat((noised.references, starts), dim=1)
            blocked = noised.blocked[: noised.labels.shape[1]]  # QueryAttention implies the learned queries' rows
        stack = self._refine(content, starts.sigmoid(), tokens, memory, blocked)
        return DecoderOutput(*stack, logits, boxes.sigmoid(), selected)

    def _propose(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Score every token as a box proposal; logits, boxes before the sigmoid, and indices of the best."""
        anchors, usable = _anchors(memory)
        x = self.proposal_norm(self.proposal_proj(tokens * usable[..., None]))
        scores = self.proposal_class(x)
        rank = scores.max(-1).values
        if not self.rank_all_tokens:
            rank = rank.masked_fill(~usable, -torch.inf)
        # The infinite anchors of unusable tokens give box (1, 1, 1, 1).
        selected = rank.topk(min(self.num_queries, x.shape[1]), dim=1).indices
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        return scores[rows, selected], self.proposal_box(x[rows, selected]) + anchors[rows, selected], selected

    def _refine(
        self, x: Tensor, references: Tensor, tokens: Tensor, memory: Memory, blocked: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        stack: Any = self if memory.stack is None else memory.stack
        logits, boxes = [], []
        # Logits of the references, not detached: each box loss also trains the layer before ("look forward twice").
        trail = inverse_sigmoid(references)
        for number, layer in enumerate(stack.layers, start=1):
            scaled = _on_levels(references, memory)
            positions = stack.position_head(encode_boxes(scaled[:, :, 0], self.dim, self.box_temperature))
            x = run_layer(layer, self.grad_checkpointing, x, positions, scaled, tokens, memory, blocked)
            normed = stack.norm(x)
            delta = self.box_head(normed)
            logits.append(self.class_head(normed))
            boxes.append((delta + trail).sigmoid())
            if number < len(stack.layers):
                step = delta if self.refine_head is None else self.refine_head(x)
                refined = (step + trail.detach()).sigmoid()
                references, trail = refined.detach(), inverse_sigmoid(refined)
        return torch.stack(logits), torch.stack(boxes)


def _on_levels(references: Tensor, memory: Memory) -> Tensor:
    """(B, Q, 4) boxes relative to the images -> (B, Q, levels, 4) relative to each padded level."""
    boxes = references[:, :, None].expand(-1, -1, len(memory.shapes), -1)
    return boxes if memory.padding is None else boxes * memory.valid_ratios.repeat(1, 1, 2)[:, None]


def _class_head(dim: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(dim, num_classes)
    nn.init.constant_(head.bias, _PRIOR)
    return head


def _box_head(dim: int) -> MLP:
    """Three layers; initialised to predict no change."""
    head = MLP(dim, [dim, dim, 4])
    last = [m for m in head if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return head


def _anchors(memory: Memory) -> tuple[Tensor, Tensor]:
    """Initial box of every token before the sigmoid, (B, N, 4), and which tokens may propose, (B, N) bool.

    Sides are 0.05 * 2^level of the image. Padding tokens, and boxes with a value outside (0.01, 0.99), cannot propose.
    Without padding, one image's anchors serve the whole batch, and the mask is (1, N).
    """
    if memory.padding is None:
        anchors, usable = _whole_anchors(memory.shapes, memory.valid_ratios.dtype, memory.valid_ratios.device)
        return anchors.expand(memory.tokens.shape[0], -1, -1), usable
    return _anchors_at(memory.shapes, memory.valid_ratios, ~memory.padding)


@constant
def _whole_anchors(
    shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`_anchors_at` for one image without padding."""
    whole = torch.ones(1, sum(h * w for h, w in shapes), dtype=torch.bool, device=device)
    return _anchors_at(shapes, torch.ones(1, len(shapes), 2, dtype=dtype, device=device), whole)


def _anchors_at(shapes: tuple[tuple[int, int], ...], valid_ratios: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    centres = token_centres(shapes, valid_ratios)
    sides = torch.cat([centres.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(shapes)])
    anchors = torch.cat((centres, sides[None, :, None].expand(centres.shape[0], -1, 2)), dim=-1)
    usable = ((anchors > 0.01) & (anchors < 0.99)).all(-1) & inside
    return torch.log(anchors / (1 - anchors)).masked_fill(~usable[..., None], torch.inf), usable
