"""What every quick way to compute deformable attention must do, with torch's operators as the measure."""

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_d2.layers.deformable_attention import sample_and_sum
from fx_d2.layers.deformable_op import Sampler

Shapes = list[tuple[int, int]]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(
    shapes: Shapes, *, batch: int = 2, queries: int = 3, heads: int = 2, dim: int = 3, points: int = 2, seed: int = 0,
    dtype: torch.dtype = torch.float64, border: bool = False,
) -> Inputs:  # fmt: skip
    """Values, locations (a third of them outside; `border`: on pixels' centres and edges) and weights."""
    generator = torch.Generator().manual_seed(seed)
    layout = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, generator=generator, dtype=dtype)
    place = torch.rand(*layout, 2, generator=generator, dtype=dtype) * 1.8 - 0.4
    if border:
        sides = torch.tensor([(w, h) for h, w in shapes], dtype=dtype)[:, None]
        place = (place * 2 * sides).round() / (2 * sides)
    weights = torch.rand(layout, generator=generator, dtype=dtype)
    return value.requires_grad_(), place.requires_grad_(), weights.requires_grad_()


def both(sample: Sampler, inputs: Inputs, shapes: Shapes) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Result and gradients of the sampler, and of torch's operators."""
    found = []
    for function in (sample, sample_and_sum):
        out = function(inputs[0], shapes, *inputs[1:])
        slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
        found.append([out, *torch.autograd.grad(out, inputs, slope)])
    return found[0], found[1]


def assert_equal(sample: Sampler, inputs: Inputs, shapes: Shapes) -> None:
    """To rounding."""
    tolerance = 1e-10 if inputs[0].dtype == torch.float64 else 2e-4
    for mine, want in zip(*both(sample, inputs, shapes), strict=True):
        assert mine.shape == want.shape and mine.dtype == want.dtype
        torch.testing.assert_close(mine, want, rtol=tolerance, atol=tolerance)


def equals_torch_s_operators(sample: Sampler, examples: int = 40) -> None:
    """All sizes: odd ones, one pixel, one query, the width for which the C++ loops are made."""
    side = st.integers(1, 6)

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        shapes=st.lists(st.tuples(side, side), min_size=1, max_size=4),
        sizes=st.fixed_dictionaries(
            {"batch": st.integers(1, 3), "queries": st.integers(1, 7), "heads": st.integers(1, 3)}
            | {"dim": st.sampled_from([1, 3, 8, 13, 32, 33]), "points": st.integers(1, 3)}
        ),
        dtype=st.sampled_from([torch.float64, torch.float32]),
        seed=st.integers(0, 99),
    )
    def check(shapes: Shapes, sizes: dict[str, int], dtype: torch.dtype, seed: int) -> None:
        assert_equal(sample, draw(shapes, **sizes, dtype=dtype, seed=seed), shapes)

    check()


def equals_them_on_borders(sample: Sampler) -> None:
    """Exactly on centres and edges, where floor jumps; sides are powers of two, so that nothing is rounded."""
    shapes = [(4, 8), (2, 1), (1, 1)]
    inputs = draw(shapes, queries=40, border=True)
    assert ((inputs[1] * 4) % 1 == 0).any() and (inputs[1] == 0).any() and (inputs[1] == 1).any()
    assert_equal(sample, inputs, shapes)


def reads_any_layout(sample: Sampler) -> None:
    """Transposed and expanded inputs, and an expanded gradient."""
    shapes = [(3, 4), (2, 1)]
    value, place, weights = (x.detach() for x in draw(shapes, queries=5, heads=5))
    value = value.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    place = place[:, :, :1].expand(-1, -1, 5, -1, -1, -1).requires_grad_()
    weights = weights.transpose(1, 2).requires_grad_()
    assert not any(x.is_contiguous() for x in (value, place, weights))
    assert_equal(sample, (value, place, weights), shapes)
    mine, want = (
        torch.autograd.grad(f(value, shapes, place, weights).sum(), (value, place, weights))
        for f in (sample, sample_and_sum)
    )
    assert all(torch.allclose(a, b) for a, b in zip(mine, want, strict=True))


def has_the_right_gradients(sample: Sampler, fast: bool = False, again: float = 0.0) -> None:
    """By finite differences; `fast`: in random directions only; `again`: how far a second backward pass may be off."""
    shapes = [(3, 4), (2, 1)]
    assert torch.autograd.gradcheck(
        lambda v, place, w: sample(v, shapes, place, w), draw(shapes), fast_mode=fast, nondet_tol=again
    )


def takes_no_query(sample: Sampler) -> None:
    """An empty result, and gradients of zero."""
    shapes = [(3, 4)]
    inputs = draw(shapes, queries=0)
    out = sample(inputs[0], shapes, *inputs[1:])
    out.sum().backward()
    assert out.shape == (2, 0, 6) and inputs[0].grad is not None and not inputs[0].grad.any()


def loses_no_nan(sample: Sampler) -> None:
    """What is not finite in an input makes what depends on it not finite, also where a point reads nothing."""
    shapes = [(3, 4), (2, 1)]
    for bad in (torch.nan, torch.inf, -torch.inf):
        for index in range(3):
            inputs = draw(shapes, queries=2)
            with torch.no_grad():
                inputs[1][0, 0] = 0.4  # reads the first level's middle
                inputs[1][0, 1] = 5.0  # reads nothing
                inputs[index][0] = bad
            out = sample(inputs[0], shapes, *inputs[1:]).view(2, 2, 6)
            assert not out[0, 0].isfinite().any() and out[1].isfinite().all(), (bad, index)
            assert index == 0 or not out[0, 1].isfinite().any(), (bad, index)
    value, place, weights = draw(shapes, queries=1)
    slope = torch.full((2, 1, 6), torch.nan, dtype=torch.float64)
    slope[1] = 1.0
    for outside in (False, True):
        moved = (place.detach() * 0 + (5.0 if outside else 0.4)).requires_grad_()
        out = sample(value, shapes, moved, weights)
        grads = torch.autograd.grad(out, (value, moved, weights), slope)
        assert grads[1][0].isnan().all() and grads[2][0].isnan().all()
        assert outside or grads[0][0].isnan().any()
        assert all(grad[1].isfinite().all() for grad in grads)


def refuses_what_does_not_fit(sample: Sampler) -> None:
    """Sizes and types are checked before any pointer is."""
    shapes = [(3, 4), (2, 1)]
    value, place, weights = (x.detach() for x in draw(shapes))
    wrong: list[Callable[[], torch.Tensor]] = [
        lambda: sample(value[:, 1:], shapes, place, weights),
        lambda: sample(value, shapes[:1], place, weights),
        lambda: sample(value, [], place[:, :, :, :0], weights[:, :, :, :0]),
        lambda: sample(value, [(14, 0), (14, 1)], place, weights),
        lambda: sample(value, shapes, place[:1], weights),
        lambda: sample(value, shapes, place, weights[:, :2]),
        lambda: sample(value, shapes, place.float(), weights),
        lambda: sample(value, shapes, place.half(), weights.half()),
    ]
    for call in wrong:
        try:
            call()
        except ValueError:
            continue
        raise AssertionError("not refused")


CASES = (
    equals_torch_s_operators,
    equals_them_on_borders,
    reads_any_layout,
    has_the_right_gradients,
    takes_no_query,
    loses_no_nan,
    refuses_what_does_not_fit,
)
