"""The convolution of small maps beside torch's."""

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.nn import functional as F

from fx_d2.layers.small_map_conv import FEW, SmallMapConv2d

SHAPES = [
    ({"padding": 1, "bias": False}, (2, 6, 7, 7)),
    ({"padding": 1}, (1, 6, 14, 14)),
    ({"padding": (2, 1), "stride": (2, 1), "dilation": (1, 2)}, (3, 6, 5, 9)),
]


@pytest.mark.parametrize(("options", "shape"), SHAPES)
def test_it_is_the_convolution(options: dict, shape: tuple[int, ...]) -> None:
    """With norm and activation, forward and backward."""
    conv = SmallMapConv2d(6, 4, 3, **options, norm=nn.BatchNorm2d(4), activation=F.relu)
    plain = Conv2d(6, 4, 3, **options, norm=nn.BatchNorm2d(4), activation=F.relu)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(shape, requires_grad=True)
    with mock.patch.object(F, "conv2d", side_effect=AssertionError):
        y = conv(x)
    want, slope = plain(x), torch.randn_like(y)
    assert torch.allclose(y, want, atol=1e-5)
    got = torch.autograd.grad(y, (x, *conv.parameters()), slope)
    for a, b in zip(got, torch.autograd.grad(want, (x, *plain.parameters()), slope), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.expand(FEW // x[0, 0].numel() + 1, -1, -1, -1),
        lambda x: x[:0],
        lambda x: x.double(),
    ],
)
def test_elsewhere_it_is_torchs(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Where there are more pixels or none, and in another precision."""
    x = change(torch.randn(1, 3, 7, 7))
    conv = SmallMapConv2d(3, 4, 3).to(x.dtype)
    with mock.patch.object(F, "unfold", side_effect=AssertionError):
        assert conv(x).shape == (len(x), 4, 5, 5)


def test_autocast_and_tracing_leave_it_torchs() -> None:
    conv, x = SmallMapConv2d(3, 4, 3), torch.randn(1, 3, 7, 7)
    with mock.patch.object(F, "unfold", side_effect=AssertionError):
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
        traced = torch.jit.trace(conv, x, check_trace=False)
    assert torch.allclose(traced(x.expand(9, -1, -1, -1))[:1], conv(x), atol=1e-6)
