"""Adapt tensors whose shape depends on image size or input channels to a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from timm.layers import resize_rel_pos_bias_table
from timm.models import adapt_input_conv
from torch import Tensor

TABLE = "relative_position_bias_table"


def fit(state: dict[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Adapt a state dict in place, where that preserves its meaning; returns a sentence for each kind of change.

    Relative position bias tables of another window size are interpolated as timm does for its own weights. The first
    convolution is summed over its input channels for a one-channel stem, which equals repeating the grey image.
    """
    tables: list[str] = []
    stems: list[str] = []
    for key, tensor in state.items():
        wanted = target.get(key)
        if wanted is None or wanted.shape == tensor.shape:
            continue
        if key.endswith(TABLE) and tensor.ndim == 2 and tensor.shape[1] == wanted.shape[1]:
            old, new = _window(tensor), _window(wanted)
            if old and new:
                table = resize_rel_pos_bias_table(tensor, (new, new), tuple(wanted.shape))
                state[key] = table.to(tensor.dtype)
                tables.append(f"{old} to {new}")
        elif tensor.ndim == 4 and tensor.shape[1] == 3 and wanted.shape[1] == 1:
            if wanted.shape == (len(tensor), 1, *tensor.shape[2:]):
                state[key] = adapt_input_conv(1, tensor)
                stems.append(key)
    notes = []
    if tables:
        kinds = ", ".join(dict.fromkeys(tables))
        notes.append(f"relative position bias tables interpolated: {len(tables)} (window {kinds})")
    if stems:
        notes.append(f"{stems[0]} was summed over its three input channels for grey images")
    return notes


def _window(table: Tensor) -> int:
    """Side w of the square window of a table with (2 w - 1)^2 rows; 0 for any other number of rows."""
    side = math.isqrt(len(table))
    return (side + 1) // 2 if side * side == len(table) and side % 2 else 0
