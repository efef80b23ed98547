"""All cases with the Triton kernels: in Triton's interpreter, as the tests run them, or on a GPU, which no test uses.

TRITON_INTERPRET=1 python -m tests.layers.triton_cases
python -m tests.layers.triton_cases cuda
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from fx_d2.layers.deformable_op import Sampler
from fx_d2.layers.deformable_triton import sample_and_sum_triton
from tests.layers.sampler_cases import CASES, draw

INTERPRETED: dict[str, dict[str, Any]] = {
    "equals_torch_s_operators": {"examples": 8},
    "has_the_right_gradients": {"fast": True},
}
"""The interpreter takes a program at a time: less work."""

ON_GPU: dict[str, dict[str, Any]] = {"has_the_right_gradients": {"again": 1e-9}}
"""Gradients are added up in any order."""


def on_gpu(
    value: torch.Tensor, shapes: Sequence[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The kernels on a GPU, from and to the host."""
    return sample_and_sum_triton(value.cuda(), shapes, locations.cuda(), weights.cuda()).cpu()


def reads_half_precision(sample: Sampler) -> None:
    """Values of 16 bits are summed in float32; their gradient has their type."""
    shapes = [(3, 4), (2, 1)]
    value, place, weights = (x.detach().float() for x in draw(shapes))
    for dtype in (torch.bfloat16, torch.float16):
        short = value.to(dtype).requires_grad_()
        exact = short.detach().float().requires_grad_()
        out, want = (sample(x, shapes, place, weights) for x in (short, exact))
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
        (mine,), (theirs,) = torch.autograd.grad(out.sum(), short), torch.autograd.grad(want.sum(), exact)
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.float(), theirs, rtol=torch.finfo(dtype).eps, atol=1e-6)


def refuses_what_is_not_deterministic(sample: Sampler) -> None:
    """As torch's grid_sample on GPUs: only gradients depend on an order, and warn_only only warns."""
    shapes = [(3, 4), (2, 1)]
    value, place, weights = draw(shapes)
    try:
        torch.use_deterministic_algorithms(True)
        out = sample(value, shapes, place, weights)
        try:
            out.sum().backward()
        except RuntimeError as error:
            assert "MODEL.LOC.SAMPLER triton" in str(error)
        else:
            raise AssertionError("not refused")
        torch.use_deterministic_algorithms(True, warn_only=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sample(value, shapes, place, weights).sum().backward()
        assert any("not deterministic" in str(warning.message) for warning in caught) and value.grad is not None
    finally:
        torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    sampler, settings = (on_gpu, ON_GPU) if sys.argv[1:] == ["cuda"] else (sample_and_sum_triton, INTERPRETED)
    for case in (*CASES, reads_half_precision, refuses_what_is_not_deterministic):
        case(sampler, **settings.get(case.__name__, {}))
        print(case.__name__)
