"""Box arithmetic on tensors of any leading shape; boxes are (cx, cy, w, h) in [0, 1] unless said otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

INVERSE_SIGMOID_EPS = 1e-3
"""Distance from 0 and 1 kept before the logit (model-reference, section 3)."""


def inverse_sigmoid(x: Tensor, eps: float = INVERSE_SIGMOID_EPS) -> Tensor:
    """Logit of values in [0, 1], finite at both ends: each factor is clamped to at least `eps`."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre-size boxes as (x1, y1, x2, y2)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def to_centre_size(corners: Tensor) -> Tensor:
    """(..., 4) boxes (x1, y1, x2, y2) as (cx, cy, w, h)."""
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def generalized_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalized IoU of boxes paired by broadcasting: (..., 4) centre-size with (..., 4) centre-size -> (...).

    torchvision offers all pairs of two flat lists or paired lists; matching needs each target with all queries of its
    image, which broadcasting gives. `eps` is added to both divisors. Sides must not be negative.
    """
    size_a, size_b = a[..., 2:], b[..., 2:]
    both = size_a + size_b
    # How far the boxes reach into each other along an axis; negative: how far they are apart.
    common = torch.minimum(both / 2 - (a[..., :2] - b[..., :2]).abs(), torch.minimum(size_a, size_b))
    inter = _area(common.clamp(min=0))
    hull = _area(both - common)
    union = _area(size_a) + _area(size_b) - inter
    tiny = torch.finfo(a.dtype).eps ** 2
    return inter / (union + eps).clamp(min=tiny) - (hull - union) / (hull + eps).clamp(min=tiny)


def _area(sides: Tensor) -> Tensor:
    """(..., 2) -> (...); the gradient of a product of two is far cheaper than that of `prod`."""
    width, height = sides.unbind(-1)
    return width * height
