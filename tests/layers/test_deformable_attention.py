"""Deformable attention against a loop over every point and pixel."""

import math

import pytest
import torch

from fx_d2.layers import deformable_attention
from fx_d2.layers.deformable_attention import (
    DeformableAttention,
    choose_sampler,
    possible_sampler,
    sample_and_sum,
    sampler_identity,
    use_sampler,
)
from fx_d2.structures import FXError

SHAPES = ((3, 4), (2, 1))
TOKENS = 14


def pixel(grid: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Bilinear sample of (H, W, D) at (x, y) in pixel units, centres at .5, zero outside."""
    out = torch.zeros(grid.shape[-1], dtype=grid.dtype)
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    for j in (top, top + 1):
        for i in (left, left + 1):
            if 0 <= j < grid.shape[0] and 0 <= i < grid.shape[1]:
                out += grid[j, i] * (1 - abs(x - 0.5 - i)) * (1 - abs(y - 0.5 - j))
    return out


def loop(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    batch, queries, heads, levels, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for b in range(batch):
        for h in range(heads):
            start = 0
            for level, (height, width) in enumerate(SHAPES):
                grid = value[b, start : start + height * width, h].view(height, width, -1)
                start += height * width
                for q in range(queries):
                    for p in range(points):
                        x, y = locations[b, q, h, level, p].tolist()
                        out[b, q, h] += weights[b, q, h, level, p] * pixel(grid, x * width, y * height)
    return out.flatten(2)


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    value = torch.randn(2, TOKENS, 2, 3, dtype=torch.float64)
    locations = torch.rand(2, 3, 2, len(SHAPES), 2, 2, dtype=torch.float64) * 1.8 - 0.4  # some outside
    weights = torch.rand(2, 3, 2, len(SHAPES), 2, dtype=torch.float64)
    return value, locations, weights


def test_sampling_equals_the_loop() -> None:
    value, locations, weights = problem()
    assert ((locations < 0) | (locations > 1)).any()
    assert torch.allclose(sample_and_sum(value, SHAPES, locations, weights), loop(value, locations, weights))


def test_gradients() -> None:
    inputs = [x.requires_grad_() for x in problem()]
    assert torch.autograd.gradcheck(lambda v, place, w: sample_and_sum(v, SHAPES, place, w), inputs)


def test_points_far_outside_read_nothing() -> None:
    value, locations, weights = problem()
    assert sample_and_sum(value, SHAPES, locations * 0 + 9, weights).abs().max() == 0


def test_no_level_is_an_error() -> None:
    value, locations, weights = problem()
    with pytest.raises(ValueError, match="at least one level"):
        sample_and_sum(value[:, :0], (), locations[:, :, :, :0], weights[:, :, :, :0])


def attention() -> DeformableAttention:
    torch.manual_seed(1)
    layer = DeformableAttention(dim=8, heads=2, levels=2, points=2).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("size", [2, 4])
def test_layer_reads_where_its_formula_says(size: int) -> None:
    layer = attention()
    query, tokens = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, TOKENS, 8, dtype=torch.float64)
    references = torch.rand(2, 3, 2, size, dtype=torch.float64)
    offsets = layer.sampling_offsets(query).view(2, 3, 2, 2, 2, 2)  # query, head, level, point, xy
    weights = layer.attention_weights(query).view(2, 3, 2, 4).softmax(-1).view(2, 3, 2, 2, 2)
    locations = torch.zeros_like(offsets)
    for level, (height, width) in enumerate(SHAPES):
        for point in range(2):
            place = references[:, :, None, level, :2]
            if size == 2:
                step = torch.tensor([1 / width, 1 / height], dtype=torch.float64)
            else:
                step = references[:, :, None, level, 2:] / 2 / 2  # half the box, over two points
            locations[:, :, :, level, point] = place + offsets[:, :, :, level, point] * step
    value = layer.value_proj(tokens).view(2, TOKENS, 2, 4)
    want = layer.output_proj(loop(value.detach(), locations.detach(), weights))
    assert torch.allclose(layer(query, references, tokens, SHAPES), want)


def test_padding_tokens_contribute_nothing() -> None:
    layer = attention()
    query, tokens = torch.randn(1, 30, 8, dtype=torch.float64), torch.randn(1, TOKENS, 8, dtype=torch.float64)
    references = torch.rand(1, 30, 2, 2, dtype=torch.float64)
    padding = torch.zeros(1, TOKENS, dtype=torch.bool)
    padding[0, [3, 7, 11, 13]] = True
    changed = tokens.clone()
    changed[padding] = 1e3
    assert torch.equal(
        layer(query, references, tokens, SHAPES, padding), layer(query, references, changed, SHAPES, padding)
    )
    assert not torch.allclose(layer(query, references, tokens, SHAPES), layer(query, references, changed, SHAPES))


def test_start_looks_around_the_reference() -> None:
    layer = DeformableAttention(dim=8, heads=4, levels=1, points=2)
    offsets = layer.sampling_offsets(torch.randn(8)).view(4, 2, 2)  # head, point, xy
    want = torch.tensor([[[1, 0], [2, 0]], [[0, 1], [0, 2]], [[-1, 0], [-2, 0]], [[0, -1], [0, -2]]]).float()
    assert torch.allclose(offsets, want, atol=1e-6)


def test_positions_stay_exact_under_autocast() -> None:
    """A reference that bfloat16 cannot hold still selects the right pixel of a wide map."""
    layer = DeformableAttention(dim=2, heads=1, levels=1, points=1)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    for projection in (layer.value_proj, layer.output_proj):
        torch.nn.init.eye_(projection.weight)
    tokens = torch.zeros(1, 1000, 2)
    tokens[0, 901] = 1.0
    reference = torch.tensor([901.5 / 1000, 0.5]).view(1, 1, 1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.zeros(1, 1, 2), reference, tokens, ((1, 1000),))
    assert out.flatten().tolist() == pytest.approx([1.0, 1.0], abs=0.01)


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="not divisible"):
        DeformableAttention(dim=8, heads=3, levels=1, points=1)


def no_library() -> str:
    raise FXError("no compiler")


def test_auto_takes_torch_where_nothing_compiles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deformable_attention, "library_digest", no_library)
    deformable_attention._choose.cache_clear()
    try:
        with caplog.at_level("INFO"):
            assert [choose_sampler("auto", "cpu") for _ in range(2)] == ["torch"] * 2
            assert sampler_identity("auto", "cpu") == "torch"
        assert caplog.messages == ["deformable attention on cpu: torch operators (no compiler)"]
        with pytest.raises(FXError, match=r"MODEL\.LOC\.SAMPLER cpp: no compiler"):
            use_sampler(attention(), "cpp", "cpu")
    finally:
        deformable_attention._choose.cache_clear()


def test_auto_takes_the_library_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable_attention, "library_digest", lambda: "0a1b2c3d")
    deformable_attention._choose.cache_clear()
    try:
        assert choose_sampler("auto", "cpu") == "cpp" and sampler_identity("auto", "cpu") == "cpp 0a1b2c3d"
        assert choose_sampler("auto", "cuda") == "torch" and choose_sampler("torch", "cpu") == "torch"
    finally:
        deformable_attention._choose.cache_clear()


@pytest.mark.parametrize(
    ("sampler", "device", "message"),
    [
        ("quick", "cpu", r"MODEL\.LOC\.SAMPLER is 'quick': choose one of \['auto', 'torch', 'cpp', 'triton'\]"),
        ("cpp", "cuda", "cpp runs on cpu devices, not on cuda"),
        ("triton", "cpu", "triton runs on cuda devices, not on cpu"),
    ],
)
def test_a_way_that_cannot_run_is_refused(sampler: str, device: str, message: str) -> None:
    with pytest.raises(FXError, match=message):
        use_sampler(attention(), sampler, device)


def test_only_what_cannot_run_is_replaced() -> None:
    assert [possible_sampler(name, "cpu") for name in ("auto", "torch", "triton")] == ["auto", "torch", "auto"]
    assert possible_sampler("cpp", "cuda") == "auto"
    with pytest.raises(FXError, match="choose one of"):
        possible_sampler("quick", "cpu")


def test_use_sampler_reaches_every_layer() -> None:
    both = use_sampler(torch.nn.ModuleList([attention(), attention()]), "auto", "cpu")
    assert [layer.sampler for layer in both] == ["auto", "auto"] and attention().sampler == "torch"
