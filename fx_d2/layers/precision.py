"""Where half precision is not enough."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is when it is float64 already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
