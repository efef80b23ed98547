"""Tokens of all levels: their number, order, places and padding."""

import math

import pytest
import torch

from fx_d2.modeling.detr.encoder import FeedForward, LocEncoder, Memory, token_centres

SHAPES = ((8, 6), (4, 3), (2, 2))


def encoder(layers: int = 1) -> LocEncoder:
    torch.manual_seed(0)
    return LocEncoder(in_channels=(4, 8), dim=64, heads=2, points=2, ffn_dim=16, layers=layers, temperature=20.0)


def features(batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, 4, 8, 6), torch.randn(batch, 8, 4, 3)]


def test_levels_and_tokens() -> None:
    model = encoder(2)
    memory = model(features(), None)
    assert model.num_levels == 3 and memory.shapes == SHAPES
    assert memory.tokens.shape == (2, 8 * 6 + 4 * 3 + 2 * 2, 64)
    assert memory.padding is None and torch.equal(memory.valid_ratios, torch.ones(2, 3, 2))


def test_tokens_are_in_level_then_row_order() -> None:
    model, x = encoder(0), features()
    tokens = model(x, None).tokens
    first, second = model.input_proj[0](x[0]), model.input_proj[1](x[1])
    assert torch.equal(tokens[:, 6 * 2 + 5], first[:, :, 2, 5])
    assert torch.equal(tokens[:, 48 + 3 * 1 + 2], second[:, :, 1, 2])
    assert torch.equal(tokens[:, 60 + 2], model.input_proj[2](x[1])[:, :, 1, 0])


def test_centres() -> None:
    centres = token_centres(SHAPES, torch.ones(1, 3, 2))[0]
    assert centres[6 * 2 + 5].tolist() == pytest.approx([5.5 / 6, 2.5 / 8])
    assert centres[48 + 4].tolist() == pytest.approx([1.5 / 3, 1.5 / 4])
    halves = token_centres(SHAPES, torch.tensor([1.0, 0.5]).expand(1, 3, 2))[0]
    assert torch.allclose(halves, centres * torch.tensor([1.0, 2.0]))


def padding() -> torch.Tensor:
    """Image 1 fills the left two thirds and the upper half of 64 x 48 pixels."""
    mask = torch.zeros(2, 64, 48, dtype=torch.bool)
    mask[1, 32:] = True
    mask[1, :, 32:] = True
    return mask


def test_padding_and_valid_ratios() -> None:
    memory = encoder()(features(), padding())
    assert memory.valid_ratios[0].tolist() == [[1, 1]] * 3
    assert torch.allclose(memory.valid_ratios[1, :2], torch.tensor([[2 / 3, 0.5]] * 2))
    assert memory.padding is not None and not memory.padding[0].any()
    valid = ~memory.padding[1, :48].view(8, 6)
    assert valid[:4, :4].all() and valid.sum() == 16


def test_nothing_flows_from_padding_into_the_image() -> None:
    """Within the attention; normalisation over the map is another matter, so the layers get tokens directly."""
    model = encoder().eval()
    for norm in model.input_proj:
        norm[1] = torch.nn.Identity()
    x = features()
    other = [f.clone() for f in x]
    other[0][1, :, 4:], other[0][1, :, :, 4:] = 7.0, 7.0
    kept, changed = model(x, padding()), model(other, padding())
    mask = kept.padding
    assert mask is not None and torch.allclose(kept.tokens[~mask], changed.tokens[~mask], atol=1e-6)
    assert not torch.allclose(kept.tokens, changed.tokens)


def test_a_padded_image_samples_its_own_places() -> None:
    """References, scaled by the valid part, point at the token itself on its own level."""
    model = encoder()
    seen = {}
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.update(references=args[2]))
    model(features(), padding())
    references = seen["references"]
    assert references.shape == (2, 64, 3, 2)
    for image in range(2):
        assert references[image, 6 * 2 + 3, 0].tolist() == pytest.approx([3.5 / 6, 2.5 / 8])
        assert references[image, 48 + 1, 1].tolist() == pytest.approx([1.5 / 3, 0.5 / 4])


def test_what_a_layer_computes_is_added_to_what_it_reads_and_then_normed() -> None:
    layer, seen = encoder().layers[0], {}
    layer.attention.register_forward_hook(lambda _, args, out: seen.update(queries=args[0], values=args[2], out=out))
    tokens, positions = torch.randn(1, 64, 64), torch.randn(1, 64, 64)
    memory = Memory(tokens, SHAPES, None, torch.ones(1, 3, 2))
    out = layer(tokens, positions, torch.rand(1, 64, 3, 2), memory)
    assert torch.equal(seen["queries"], tokens + positions) and torch.equal(seen["values"], tokens)
    assert torch.allclose(out, by_hand(layer.ffn, layer.norm(tokens + seen["out"])))


def by_hand(part: FeedForward, x: torch.Tensor) -> torch.Tensor:
    return part.norm(x + part.linear2(part.linear1(x).clamp(min=0)))


def test_positions_are_added_to_queries_with_a_mark_of_the_level() -> None:
    model = encoder()
    seen = {}
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.update(positions=args[1]))
    model(features(), None)
    before = seen["positions"]
    with torch.no_grad():
        model.level_embed[1] += 1
    model(features(), None)
    change = seen["positions"] - before
    assert change[:, 48:60].allclose(torch.ones(())) and change[:, :48].abs().max() == change[:, 60:].abs().max() == 0


def test_places_stay_exact_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = encoder()(features(), padding())
    assert memory.valid_ratios.dtype == torch.float32
    assert memory.valid_ratios[1, 0].tolist() == pytest.approx([2 / 3, 0.5])


def test_places_are_float32_in_a_float64_model() -> None:
    """As in the reference, whose float64 numbers a float64 model must give."""
    padding = torch.zeros(1, 32, 24, dtype=torch.bool)
    padding[:, :, 20:] = True
    memory = encoder().double()([x[:1].double() for x in features()], padding)
    assert memory.valid_ratios.dtype == torch.float32 and memory.tokens.dtype == torch.float64
    assert token_centres(memory.shapes, memory.valid_ratios).dtype == torch.float32


def test_start_of_training() -> None:
    """As in DETR: what projects the trunk's levels begins in Xavier's range and without a bias."""
    for conv, _ in encoder().input_proj:
        limit = math.sqrt(6 / (conv.weight[0].numel() + conv.weight[:, 0].numel()))
        assert 0.8 * limit < conv.weight.abs().max() <= limit and not conv.bias.any()


def test_every_parameter_learns() -> None:
    model = encoder()
    model(features(), None).tokens.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
