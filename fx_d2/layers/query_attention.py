"""Self-attention among queries, of which the first may be denoising queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QueryAttention(nn.MultiheadAttention):
    """Multi-head self-attention whose values come without positions; weights are named as torch names them.

    Only the rows of denoising queries need a mask: learned queries see each other and nothing else. Computed apart, the
    learned ones run in torch's attention without mask (flash attention on GPUs), and what they may not see is not
    computed. On a CPU core in float32 the forward pass is 1.15 to 1.36 times, and the backward pass 1.13 to 1.33 times,
    as fast as under one mask.

    Args:
        dim: token size.
        heads: number of attention heads.
    """

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__(dim, heads, batch_first=True)
        # As DETR and DINO draw all matrices of their decoders; torch does so for queries, keys and values only.
        nn.init.xavier_uniform_(self.out_proj.weight)

    def forward(self, query: Tensor, x: Tensor, blocked: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Attend.

        Args:
            query: (B, P + Q, C), the queries with positions.
            x: (B, P + Q, C), the queries without.
            blocked: (P, P + Q) bool, True where one of the first P queries may not look; the other Q do not look at
                those P. None: P = 0.

        Returns:
            (B, P + Q, C).
        """
        dim = query.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q, k = F.linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        v = F.linear(x, weight[2 * dim :], bias[2 * dim :])
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        first = 0 if blocked is None else blocked.shape[0]
        seen = F.scaled_dot_product_attention(q[:, :, first:], k[:, :, first:], v[:, :, first:])
        if first:
            assert blocked is not None
            seen = torch.cat((F.scaled_dot_product_attention(q[:, :, :first], k, v, attn_mask=~blocked), seen), dim=2)
        out: Tensor = self.out_proj(seen.transpose(1, 2).flatten(2))
        return out
