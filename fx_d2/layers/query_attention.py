"""Self-attention among queries; the first ones may be denoising queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QueryAttention(nn.MultiheadAttention):
    """Multi-head self-attention whose values carry no positional encoding; parameter names are torch's.

    Only denoising queries need a mask: learned queries attend to each other and to nothing else. Computed separately,
    learned queries use torch's unmasked attention (flash attention on GPUs), and masked scores are not computed at all.
    On a CPU core in float32, the forward pass is 1.15 to 1.36 times and the backward pass 1.13 to 1.33 times as fast as
    with one mask for all queries.

    Args:
        dim: token size.
        heads: number of attention heads.
    """

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__(dim, heads, batch_first=True)
        # DETR and DINO initialise all decoder matrices this way; torch does so for queries, keys and values only.
        nn.init.xavier_uniform_(self.out_proj.weight)

    def forward(self, query: Tensor, x: Tensor, blocked: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Attend.

        Args:
            query: (B, P + Q, C), the queries with positional encodings.
            x: (B, P + Q, C), the queries without.
            blocked: (P, P + Q) bool attention mask of the first P queries, True = may not attend; the other Q never
                attend to those P. None: P = 0.

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
