"""Query attention against torch's attention under one mask."""

import pytest
import torch
from torch import nn

from fx_d2.layers.query_attention import QueryAttention

FIRST, LEARNED, DIM = 6, 5, 12


def blocked() -> torch.Tensor:
    """Of FIRST + LEARNED queries: the first in groups of two, which see the learned ones, too."""
    owner = torch.tensor([0, 0, 1, 1, 2, 2, *[-1] * LEARNED])
    return (owner[:, None] != owner[None]) & (owner >= 0)


@pytest.mark.parametrize("first", [FIRST, 0])
def test_equals_torch_s_attention_under_one_mask(first: int) -> None:
    torch.manual_seed(0)
    layer = QueryAttention(dim=DIM, heads=3).double()
    nn.init.normal_(layer.in_proj_bias)
    nn.init.normal_(layer.out_proj.bias)
    plain = nn.MultiheadAttention(DIM, 3, batch_first=True).double()
    plain.load_state_dict(layer.state_dict())
    inputs = [torch.randn(2, first + LEARNED, DIM, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    query, x = inputs
    mask = blocked()[FIRST - first :, FIRST - first :]
    want, _ = plain(query, query, x, attn_mask=mask, need_weights=False)
    got = layer(query, x, mask[:first] if first else None)
    assert torch.allclose(got, want)
    slope = torch.randn_like(want)
    gradients = (
        torch.autograd.grad(out, [*inputs, *model.parameters()], slope) for out, model in ((got, layer), (want, plain))
    )
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs)


def test_no_denoising_query_is_like_none_at_all() -> None:
    torch.manual_seed(0)
    layer = QueryAttention(dim=DIM, heads=3)
    x = torch.randn(2, LEARNED, DIM)
    assert torch.equal(layer(x, x, torch.zeros(0, LEARNED, dtype=torch.bool)), layer(x, x))


def test_learned_queries_meet_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of torch's attention: the learned queries among themselves, the others under their rows of the mask."""
    calls = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None) -> object:
        calls.append((q.shape[2], k.shape[2], None if attn_mask is None else tuple(attn_mask.shape)))
        return q

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attention)
    x = torch.randn(2, FIRST + LEARNED, DIM)
    QueryAttention(dim=DIM, heads=3)(x, x, blocked()[:FIRST])
    assert calls == [(LEARNED, LEARNED, None), (FIRST, FIRST + LEARNED, (FIRST, FIRST + LEARNED))]
