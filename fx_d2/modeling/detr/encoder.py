"""The shared localization encoder: deformable self-attention over the tokens of all pyramid levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fx_d2.layers.checkpointing import run_layer
from fx_d2.layers.constants import constant
from fx_d2.layers.deformable_attention import DeformableAttention
from fx_d2.layers.group_norm import GroupNorm
from fx_d2.layers.position_encoding import encode_positions
from fx_d2.structures import FXError

_GROUPS = 32
"""Groups of GroupNorm, as in DINO."""


@dataclass(frozen=True)
class Memory:
    """The encoder's output.

    Attributes:
        tokens: (B, N, C), all levels concatenated, each in row-major order.
        shapes: (H, W) of each level; N = sum of H * W.
        padding: (B, N) bool, True on padding, or None if no image of the batch is padded.
        valid_ratios: (B, levels, 2) float32: fraction of (width, height) of each level that is image.
        stack: the decoder layers that all datasets share, or None if each decoder has its own.
    """

    tokens: Tensor
    shapes: tuple[tuple[int, int], ...]
    padding: Tensor | None
    valid_ratios: Tensor
    stack: nn.Module | None = None


def init_linear(module: nn.Module) -> None:
    """Xavier uniform weights for all linear layers of a module, as in DETR and DINO; biases keep torch's default."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)


class FeedForward(nn.Module):
    """Linear, ReLU, Linear, residual connection, LayerNorm."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)
        init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.norm(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward block; post-norm."""

    def __init__(self, *, dim: int, heads: int, levels: int, points: int, ffn_dim: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim=dim, heads=heads, levels=levels, points=points)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)

    def forward(self, tokens: Tensor, positions: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """(B, N, C) tokens and positions, (B, N, levels, 2) references -> (B, N, C)."""
        seen = self.attention(tokens + positions, references, tokens, memory.shapes, memory.padding)
        return self.ffn(self.norm(tokens + seen))


class LocEncoder(nn.Module):
    """Projects the backbone's levels to one width, adds a coarser level, and encodes all tokens.

    Args:
        in_channels: channels of the backbone's levels, fine to coarse.
        dim: token size.
        heads: attention heads.
        points: sampling points per head and level.
        ffn_dim: hidden size of the feed-forward blocks.
        layers: number of encoder layers.
        temperature: of the sine position encoding.
        decoder_stack: decoder layers that datasets share; passed on with the memory, not run here.
        grad_checkpointing: recompute the layers in the backward pass.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        dim: int,
        heads: int,
        points: int,
        ffn_dim: int,
        layers: int,
        temperature: float,
        decoder_stack: nn.Module | None = None,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if dim % _GROUPS:
            raise FXError(f"MODEL.LOC.HIDDEN_DIM {dim} must be a multiple of {_GROUPS}, the groups of its GroupNorms")
        self.dim, self.temperature, self.grad_checkpointing = dim, temperature, grad_checkpointing
        self.num_levels = len(in_channels) + 1
        projections = [nn.Conv2d(c, dim, 1) for c in in_channels]
        projections.append(nn.Conv2d(in_channels[-1], dim, 3, stride=2, padding=1))
        self.input_proj = nn.ModuleList(nn.Sequential(conv, GroupNorm(_GROUPS, dim)) for conv in projections)
        for conv in projections:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # a convolution may have none
        self.level_embed = nn.Parameter(torch.empty(self.num_levels, dim).normal_())
        self.layers = nn.ModuleList(
            EncoderLayer(dim=dim, heads=heads, levels=self.num_levels, points=points, ffn_dim=ffn_dim)
            for _ in range(layers)
        )
        self.decoder_stack = decoder_stack

    def forward(self, features: Sequence[Tensor], padding: Tensor | None) -> Memory:
        """Encode.

        Args:
            features: the backbone's levels, (B, C_i, H_i, W_i), fine to coarse.
            padding: (B, H, W) bool at image size, True on padding, or None.
        """
        levels = [proj(x) for proj, x in zip(self.input_proj, features, strict=False)]
        levels.append(self.input_proj[-1](features[-1]))
        shapes = tuple((x.shape[2], x.shape[3]) for x in levels)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)
        settings = (self.dim, self.temperature, self.level_embed.dtype)
        if padding is None:
            sines, ratios, references = (
                x.expand(tokens.shape[0], *x.shape[1:])
                for x in _unpadded_position_inputs(shapes, *settings, tokens.device)
            )
            flat = None
        else:
            valid = [~F.interpolate(padding[:, None].float(), size=size)[:, 0].bool() for size in shapes]
            sines, ratios, references = _position_inputs(valid, *settings)
            flat = torch.cat([~mask.flatten(1) for mask in valid], dim=1)
        marks = [mark.expand(h * w, -1) for mark, (h, w) in zip(self.level_embed, shapes, strict=True)]
        positions = sines + torch.cat(marks)
        memory = Memory(tokens, shapes, flat, ratios)
        for layer in self.layers:
            tokens = run_layer(layer, self.grad_checkpointing, tokens, positions, references, memory)
        return Memory(tokens, shapes, flat, ratios, self.decoder_stack)


def _position_inputs(
    valid: Sequence[Tensor], dim: int, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Positional inputs of the encoder from each level's (B, H, W) bool mask, False on padding.

    Returns:
        position encodings (B, N, dim); ratios (B, levels, 2) as `Memory.valid_ratios`; reference points
        (B, N, levels, 2), the location of each token on each level.
    """
    sines = torch.cat([encode_positions(mask, dim, temperature, dtype).flatten(1, 2) for mask in valid], dim=1)
    ratios = torch.stack([_valid_ratio(mask) for mask in valid], dim=1)
    centres = token_centres([(mask.shape[1], mask.shape[2]) for mask in valid], ratios)
    return sines, ratios, centres[:, :, None] * ratios[:, None]


@constant
def _unpadded_position_inputs(
    shapes: tuple[tuple[int, int], ...], dim: int, temperature: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """`_position_inputs` for one image without padding."""
    valid = [torch.ones(1, *shape, dtype=torch.bool, device=device) for shape in shapes]
    return _position_inputs(valid, dim, temperature, dtype)


def _valid_ratio(valid: Tensor) -> Tensor:
    """(B, H, W) bool -> (B, 2): fraction of columns and of rows that are image.

    Always float32: bfloat16's 8 bits are too few, and a float64 model must get the reference's values.
    """
    height = valid[:, :, 0].sum(1).float() / valid.shape[1]
    width = valid[:, 0, :].sum(1).float() / valid.shape[2]
    return torch.stack((width, height), dim=-1)


def token_centres(shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """Centre (x, y) of every token relative to the image without padding: (B, N, 2)."""
    centres = []
    for level, (h, w) in enumerate(shapes):
        y = torch.arange(h, dtype=valid_ratios.dtype, device=valid_ratios.device) + 0.5
        x = torch.arange(w, dtype=valid_ratios.dtype, device=valid_ratios.device) + 0.5
        grid = torch.stack((x.expand(h, w), y[:, None].expand(h, w)), dim=-1).view(1, -1, 2)
        size = valid_ratios.new_tensor((w, h))
        centres.append(grid / (valid_ratios[:, None, level] * size))
    return torch.cat(centres, dim=1)
