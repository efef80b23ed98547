"""All cases with the Triton kernels in its interpreter; TRITON_INTERPRET=1 must stand before the first import."""

from typing import Any

import torch

from fx_d2.layers.deformable_triton import sample_and_sum_triton
from tests.layers.sampler_cases import CASES, draw

QUICK: dict[str, dict[str, Any]] = {
    "equals_torch_s_operators": {"examples": 8},
    "has_the_right_gradients": {"fast": True},
}
"""The interpreter takes a program at a time: less work."""


def reads_half_precision() -> None:
    """Values of 16 bits are summed in float32; their gradient has their type."""
    shapes = [(3, 4), (2, 1)]
    value, place, weights = (x.detach().float() for x in draw(shapes))
    for dtype in (torch.bfloat16, torch.float16):
        short = value.to(dtype).requires_grad_()
        exact = short.detach().float().requires_grad_()
        out, want = (sample_and_sum_triton(x, shapes, place, weights) for x in (short, exact))
        assert out.dtype == torch.float32 and torch.equal(out, want)
        (mine,), (theirs,) = torch.autograd.grad(out.sum(), short), torch.autograd.grad(want.sum(), exact)
        assert mine.dtype == dtype and torch.equal(mine, theirs.to(dtype))


if __name__ == "__main__":
    for case in CASES:
        case(sample_and_sum_triton, **QUICK.get(case.__name__, {}))
        print(case.__name__)
    reads_half_precision()
    print("reads_half_precision")
