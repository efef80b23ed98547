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
    """Generalized IoU of boxes paired by broadcasting: (..., 4) corners with (..., 4) corners -> (...).

    torchvision offers all-pairs of two flat lists or paired lists; matching needs all pairs per image
    in a batch, which broadcasting gives as `generalized_iou(a[..., :, None, :], b[..., None, :, :])`.
    `eps` is added to both divisors.
    """
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    tiny = torch.finfo(a.dtype).eps ** 2
    return inter / (union + eps).clamp(min=tiny) - (hull - union) / (hull + eps).clamp(min=tiny)
