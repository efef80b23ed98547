"""Sine encodings of token positions and boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fx_d2.layers.constants import constant

_SCALE = 2 * math.pi


@constant
def _periods(features: int, temperature: float, device: torch.device) -> tuple[Tensor]:
    """Periods of the encoding, (features,), each repeated for its sine and its cosine."""
    index = torch.arange(features, dtype=torch.float32, device=device)
    return (temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / features),)


def _sines(values: Tensor, features: int, temperature: float) -> Tensor:
    """Interleaved sines and cosines of (...) values at features / 2 frequencies -> (..., features)."""
    angle = values[..., None] / _periods(features, temperature, values.device)[0]
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


def encode_positions(valid: Tensor, dim: int, temperature: float, dtype: torch.dtype) -> Tensor:
    """Sine encoding of every position of a feature map, normalised to the valid region of each image.

    Always computed in float32, as in the reference: a float64 model must get the same values.

    Args:
        valid: (B, H, W) bool, False on padding.
        dim: size of the encoding, first half for y, second for x.
        temperature: base of the frequencies (reference: 20).
        dtype: of the result.

    Returns:
        (B, H, W, dim).
    """
    y = valid.cumsum(1, dtype=torch.float32)
    x = valid.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * _SCALE
    x = x / (x[:, :, -1:] + 1e-6) * _SCALE
    return torch.cat((_sines(y, dim // 2, temperature), _sines(x, dim // 2, temperature)), dim=-1).to(dtype)


def encode_boxes(boxes: Tensor, dim: int, temperature: float) -> Tensor:
    """Sine encoding of (..., 4) boxes (cx, cy, w, h) -> (..., 2 * dim), concatenated in the order y, x, w, h."""
    x, y, w, h = (boxes * _SCALE).unbind(-1)
    return _sines(torch.stack((y, x, w, h), dim=-1), dim // 2, temperature).flatten(-2)
