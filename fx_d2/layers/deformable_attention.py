"""Multi-scale deformable attention (Zhu et al., ICLR 2021) in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sample_and_sum(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Bilinear samples of all levels, weighted and summed.

    Args:
        value: (B, N, heads, D), the tokens of all levels one after the other, N = sum of H * W.
        shapes: (H, W) of each level.
        locations: (B, Q, heads, levels, points, 2), (x, y) in [0, 1] of the level.
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * D).
    """
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # B*heads, levels, Q, points, 2
    mass = weights.permute(0, 2, 3, 1, 4).flatten(0, 1).unsqueeze(2)  # B*heads, levels, 1, Q, points
    out: Tensor | None = None
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        image = part.permute(0, 2, 3, 1).reshape(batch * heads, dim, *shapes[level])
        samples = F.grid_sample(image, grids[:, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        term = (samples * mass[:, level]).sum(-1)  # summing per level keeps only one level's samples alive
        out = term if out is None else out + term
    if out is None:
        raise ValueError("deformable attention needs at least one level")
    return out.view(batch, heads * dim, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Each query looks at a few learned points on every level around its reference.

    Args:
        dim: token size.
        heads: number of attention heads.
        levels: number of feature levels.
        points: sampling points per head and level.
    """

    def __init__(self, *, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by {heads} heads")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """Start as the authors of deformable attention do: head k looks in direction k, point p at distance p."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        offsets = direction.view(self.heads, 1, 1, 2).expand(-1, self.levels, self.points, -1) * steps
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C), with positions already added.
            references: (B, Q, levels, 2) points or (B, Q, levels, 4) boxes, in [0, 1].
            tokens: (B, N, C).
            shapes: (H, W) of each level.
            padding: (B, N) bool, True where a token is padding; None when there is none.

        Returns:
            (B, Q, C).
        """
        batch, queries, _ = query.shape
        value = self.value_proj(tokens)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0)
        layout = (batch, queries, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).view(*layout, 2)
        weights = self.attention_weights(query).view(*layout[:3], -1).softmax(-1).view(layout)
        if references.shape[-1] == 2:
            sizes = offsets.new_tensor([(w, h) for h, w in shapes])[None, None, None, :, None]
            locations = references[:, :, None, :, None] + offsets / sizes
        else:
            reach = references[:, :, None, :, None, 2:] * (0.5 / self.points)
            locations = references[:, :, None, :, None, :2] + offsets * reach
        # Sampling positions need more than bfloat16's 8 bits: this part stays in float32 under autocast.
        with torch.autocast(query.device.type, enabled=False):
            exact = torch.promote_types(value.dtype, torch.float32)
            split = value.view(batch, -1, self.heads, value.shape[-1] // self.heads)
            out = sample_and_sum(split.to(exact), shapes, locations.to(exact), weights.to(exact))
        return self.output_proj(out)
