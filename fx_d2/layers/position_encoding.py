"""Sine encodings of token positions and of boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SCALE = 2 * math.pi


def _sines(values: Tensor, features: int, temperature: float) -> Tensor:
    """Interleaved sine and cosine of (...) values on `features` frequencies -> (..., features)."""
    index = torch.arange(features, dtype=torch.float32, device=values.device)
    period = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / features)
    angle = values[..., None] / period
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


def encode_positions(valid: Tensor, dim: int, temperature: float, dtype: torch.dtype) -> Tensor:
    """Sine encoding of every position of a feature map, normalised to the valid part of each image.

    Computed in float32 whatever `dtype` is, as the reference does: a float64 model must get its numbers.

    Args:
        valid: (B, H, W) bool, False on padding.
        dim: size of the encoding, first half for y, second for x.
        temperature: base of the frequencies (reference: 20).
        dtype: floating type of the result.

    Returns:
        (B, H, W, dim).
    """
    y = valid.cumsum(1, dtype=torch.float32)
    x = valid.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * _SCALE
    x = x / (x[:, :, -1:] + 1e-6) * _SCALE
    return torch.cat((_sines(y, dim // 2, temperature), _sines(x, dim // 2, temperature)), dim=-1).to(dtype)


def encode_boxes(boxes: Tensor, dim: int, temperature: float) -> Tensor:
    """Sine encoding of (..., 4) boxes (cx, cy, w, h) -> (..., 2 * dim), in the order y, x, w, h."""
    parts = _sines(boxes * _SCALE, dim // 2, temperature)
    return parts[..., [1, 0, 2, 3], :].flatten(-2)
