"""Box operations on tensors of any leading shape; boxes are (cx, cy, w, h) in [0, 1] unless stated otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

INVERSE_SIGMOID_EPS = 1e-3
"""Lower bound of x and of 1 - x in the logit, as in the reference."""


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logit of values in [0, 1], finite at both ends: x and 1 - x are clamped to at least INVERSE_SIGMOID_EPS.

    torch.logit clamps x to [eps, 1 - eps] instead, which differs near the ends.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=INVERSE_SIGMOID_EPS) / (1 - x).clamp(min=INVERSE_SIGMOID_EPS))


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) boxes (cx, cy, w, h) -> (x1, y1, x2, y2)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def to_centre_size(corners: Tensor) -> Tensor:
    """(..., 4) boxes (x1, y1, x2, y2) -> (cx, cy, w, h)."""
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def generalized_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalized IoU of boxes paired by broadcasting: (..., 4) and (..., 4), both (cx, cy, w, h) -> (...).

    torchvision computes either all pairs of two flat lists or element-wise pairs. Matching pairs each target with all
    queries of its own image, which broadcasting expresses. `eps` is added to both denominators. Widths and heights must
    not be negative.
    """
    size_a, size_b = a[..., 2:], b[..., 2:]
    both = size_a + size_b
    # Length of the overlap along each axis; negative: the gap between the boxes.
    common = torch.minimum(both / 2 - (a[..., :2] - b[..., :2]).abs(), torch.minimum(size_a, size_b))
    inter = _area(common.clamp(min=0))
    hull = _area(both - common)
    union = _area(size_a) + _area(size_b) - inter
    tiny = torch.finfo(a.dtype).eps ** 2
    return inter / (union + eps).clamp(min=tiny) - (hull - union) / (hull + eps).clamp(min=tiny)


def _area(sides: Tensor) -> Tensor:
    """(..., 2) -> (...); the backward pass of a product of two is far cheaper than that of `prod`."""
    width, height = sides.unbind(-1)
    return width * height
