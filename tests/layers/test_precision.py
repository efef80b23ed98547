"""Types that are widened and types that are kept."""

import pytest
import torch

from fx_d2.layers.precision import at_least_float32


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_widened_and_nothing_is_narrowed(given: torch.dtype, kept: torch.dtype) -> None:
    x = torch.tensor([0.5, -2.0], dtype=given, requires_grad=True)
    wide = at_least_float32(x)
    assert wide.dtype == kept and wide.tolist() == [0.5, -2.0] and wide.requires_grad
