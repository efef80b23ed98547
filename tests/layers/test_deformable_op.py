"""What `define_sampler` adds to a pair of functions; here of torch's operators, so that no compiler is needed."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fx_d2.layers.deformable_op import define_sampler
from tests.layers.sampler_cases import draw

SHAPES = [(3, 4), (2, 1)]
MAPS = [3, 4, 2, 1]
contiguous: list[bool] = []


def formula(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Not attention, but of its sizes: something whose gradients can be written down."""
    mass = weights.flatten(3).sum(-1)[..., None]
    return (value.mean(1)[:, None] * mass + locations.flatten(3).sum(-1)[..., None]).flatten(2)


def forward(value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    contiguous.append(all(x.is_contiguous() for x in (value, locations, weights)))
    return formula(value, locations, weights)


def backward(
    slope: Tensor, value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    slope = slope.unflatten(2, value.shape[2:])
    mass, mean = weights.flatten(3).sum(-1)[..., None], value.mean(1)[:, None]
    to_weight = (slope * mean).sum(-1)[..., None, None].expand_as(weights)
    to_place = slope.sum(-1)[..., None, None, None].expand_as(locations)
    to_value = ((slope * mass).sum(1) / value.shape[1])[:, None].expand_as(value)
    return to_value.contiguous(), to_place.contiguous(), to_weight.contiguous()


sample = define_sampler("sampler_of_a_test", forward, backward)


def test_result_and_gradients_are_those_of_the_functions() -> None:
    inputs = draw(SHAPES)
    torch.testing.assert_close(sample(inputs[0], SHAPES, *inputs[1:]), formula(*inputs))
    torch.autograd.gradcheck(lambda value, *rest: sample(value, SHAPES, *rest), inputs)


def test_functions_get_contiguous_tensors() -> None:
    value, locations, weights = (x.detach() for x in draw(SHAPES))
    turned = value.transpose(1, 2).contiguous().transpose(1, 2)
    wide = locations[:, :1].expand(-1, 3, -1, -1, -1, -1)
    assert not turned.is_contiguous() and not wide.is_contiguous()
    contiguous.clear()
    out = sample(turned, SHAPES, wide, weights)
    assert contiguous == [True]
    torch.testing.assert_close(out, formula(value, wide, weights))


def test_torch_s_own_check() -> None:
    """Schema, gradients, and results on tensors without memory."""
    value, locations, weights = draw(SHAPES)
    torch.library.opcheck(torch.ops.fx_d2.sampler_of_a_test.default, (value, MAPS, locations, weights))


def test_without_memory_only_the_size_is_known() -> None:
    with FakeTensorMode():
        value, locations, weights = torch.empty(2, 14, 2, 3), torch.empty(2, 5, 2, 2, 2, 2), torch.empty(2, 5, 2, 2, 2)
        assert sample(value, SHAPES, locations, weights).shape == (2, 5, 6)


@pytest.mark.parametrize("shapes", [[(3, 4)], [(3, 4), (2, 2)], [(7, 2), (0, 2)], [(3, 4), (-1, -2)], []])
def test_maps_that_do_not_fit_are_refused(shapes: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="are inconsistent"):
        sample(*_with(shapes, *(x.detach() for x in draw(SHAPES))))


def test_tensors_that_do_not_fit_are_refused() -> None:
    value, locations, weights = (x.detach() for x in draw(SHAPES))
    for wrong in (
        (value, locations[:, :2], weights),
        (value, locations, weights[..., :1]),
        (value[:1], locations, weights),
    ):
        with pytest.raises(ValueError, match="are inconsistent"):
            sample(*_with(SHAPES, *wrong))
    with pytest.raises(ValueError, match="both must be float32 or both float64"):
        sample(value, SHAPES, locations.half(), weights.half())
    with pytest.raises(ValueError, match="both must be float32 or both float64"):
        sample(value, SHAPES, locations, weights.float())


def _with(
    shapes: list[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    return value, shapes, locations, weights
