"""Multi-scale deformable attention on GPUs in Triton.

Written and tested without a GPU, in Triton's interpreter (TRITON_INTERPRET=1): correctness is tested, speed is not. The
gradient of the values is accumulated with atomic adds, so its last bits vary from run to run, as they do for torch's
grid_sample on GPUs: under torch.use_deterministic_algorithms both refuse the backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fx_d2.layers.constants import constant
from fx_d2.layers.deformable_op import define_sampler

BLOCK = 16
"""Rows (image, query, head) per program: with 32 channels, four elements for each thread of four warps."""


@constant
def _table(maps: tuple[int, ...], device: torch.device) -> tuple[Tensor]:
    """(height, width, index of the first token) of each level, on the device."""
    rows, start = [], 0
    for height, width in zip(maps[::2], maps[1::2], strict=True):
        rows.append((height, width, start))
        start += height * width
    return (torch.tensor(rows, dtype=torch.int64, device=device),)


@triton.jit
def _rows(rows: tl.tensor, heads: tl.tensor, queries: tl.tensor, BLOCK: tl.constexpr) -> Any:
    """Row indices of a program, which of them exist, and the head and image of each."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return row, row < rows, row % heads, row // heads // queries


@triton.jit
def _level(
    table: tl.tensor,
    level: tl.tensor,
    image: tl.tensor,
    head: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    DIM: tl.constexpr,
) -> Any:
    """Height and width of a level, and the offset in `value` of the level's first pixel for each row."""
    height, width, token = tl.load(table + 3 * level), tl.load(table + 3 * level + 1), tl.load(table + 3 * level + 2)
    return height, width, ((image * tokens + token) * heads + head) * DIM


@triton.jit
def _place(
    locations: tl.tensor, place: tl.tensor, height: tl.tensor, width: tl.tensor, valid: tl.tensor, TYPE: tl.constexpr
) -> Any:
    """Upper left pixel of each point and the distance to it, by grid_sample's convention (pixel centres at .5)."""
    u = tl.load(locations + 2 * place, mask=valid, other=0).to(TYPE)
    v = tl.load(locations + 2 * place + 1, mask=valid, other=0).to(TYPE)
    x = ((2 * u - 1) + 1) * (width.to(TYPE) / 2) - 0.5
    y = ((2 * v - 1) + 1) * (height.to(TYPE) / 2) - 0.5
    left, top = tl.floor(x), tl.floor(y)
    return left, top, x - left, y - top


@triton.jit
def _corner(
    left: tl.tensor, top: tl.tensor, height: tl.tensor, width: tl.tensor, valid: tl.tensor, TYPE: tl.constexpr
) -> Any:
    """Index of a pixel within its level, and whether it is inside; compared as floats, which cannot overflow."""
    inside = valid & (left >= 0) & (left < width.to(TYPE)) & (top >= 0) & (top < height.to(TYPE))
    column, row = tl.where(inside, left, 0).to(tl.int64), tl.where(inside, top, 0).to(tl.int64)
    return row * width + column, inside


@triton.jit
def sum_kernel(
    value: tl.tensor,
    table: tl.tensor,
    locations: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    queries: tl.tensor,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    TYPE: tl.constexpr,
) -> None:
    """Weighted sums of BLOCK rows."""
    row, valid, head, image = _rows(rows, heads, queries, BLOCK)
    channel = tl.arange(0, WIDE)
    exists = channel < DIM
    total = tl.zeros((BLOCK, WIDE), dtype=TYPE)
    for level in range(LEVELS):
        height, width, first = _level(table, level, image, head, tokens, heads, DIM)
        for point in range(POINTS):
            place = (row * LEVELS + level) * POINTS + point
            mass = tl.load(weights + place, mask=valid, other=0).to(TYPE)
            left, top, right, below = _place(locations, place, height, width, valid, TYPE)
            for corner in tl.static_range(4):
                pixel, inside = _corner(left + corner % 2, top + corner // 2, height, width, valid, TYPE)
                part = (right if corner % 2 else 1 - right) * (below if corner // 2 else 1 - below)
                address = (first + pixel * heads * DIM)[:, None] + channel[None, :]
                sample = tl.load(value + address, mask=inside[:, None] & exists[None, :], other=0).to(TYPE)
                total += (mass * part)[:, None] * sample
    address = (row * DIM)[:, None] + channel[None, :]
    tl.store(out + address, total, mask=valid[:, None] & exists[None, :])


@triton.jit
def grad_kernel(
    grad_out: tl.tensor,
    value: tl.tensor,
    table: tl.tensor,
    locations: tl.tensor,
    weights: tl.tensor,
    grad_value: tl.tensor,
    grad_locations: tl.tensor,
    grad_weights: tl.tensor,
    rows: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    queries: tl.tensor,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    TYPE: tl.constexpr,
) -> None:
    """Gradients of BLOCK rows; grad_value starts as zeros."""
    row, valid, head, image = _rows(rows, heads, queries, BLOCK)
    channel = tl.arange(0, WIDE)
    exists = channel < DIM
    address = (row * DIM)[:, None] + channel[None, :]
    slope = tl.load(grad_out + address, mask=valid[:, None] & exists[None, :], other=0).to(TYPE)
    for level in range(LEVELS):
        height, width, first = _level(table, level, image, head, tokens, heads, DIM)
        for point in range(POINTS):
            place = (row * LEVELS + level) * POINTS + point
            mass = tl.load(weights + place, mask=valid, other=0).to(TYPE)
            left, top, right, below = _place(locations, place, height, width, valid, TYPE)
            grad_mass = tl.zeros((BLOCK,), dtype=TYPE)
            grad_x = tl.zeros((BLOCK,), dtype=TYPE)
            grad_y = tl.zeros((BLOCK,), dtype=TYPE)
            for corner in tl.static_range(4):
                pixel, inside = _corner(left + corner % 2, top + corner // 2, height, width, valid, TYPE)
                across, down = right if corner % 2 else 1 - right, below if corner // 2 else 1 - below
                address = (first + pixel * heads * DIM)[:, None] + channel[None, :]
                there = inside[:, None] & exists[None, :]
                sample = tl.load(value + address, mask=there, other=0).to(TYPE)
                dot = tl.sum(slope * sample, axis=1)
                grad_mass += across * down * dot
                grad_x += (down if corner % 2 else -down) * dot
                grad_y += (across if corner // 2 else -across) * dot
                tl.atomic_add(grad_value + address, (mass * across * down)[:, None] * slope, mask=there, sem="relaxed")
            tl.store(grad_weights + place, grad_mass, mask=valid)
            tl.store(grad_locations + 2 * place, grad_x * mass * width.to(TYPE), mask=valid)
            tl.store(grad_locations + 2 * place + 1, grad_y * mass * height.to(TYPE), mask=valid)


def _launch(kernel: Any, tensors: Sequence[Tensor], value: Tensor, locations: Tensor) -> None:
    """Launch a kernel over all rows, on the device of its tensors."""
    (_, tokens, heads, dim), (batch, queries, _, levels, points, _) = value.shape, locations.shape
    rows = batch * queries * heads
    if not rows:
        return
    with torch.cuda.device_of(value):
        kernel[(triton.cdiv(rows, BLOCK),)](
            *tensors,
            *(rows, tokens, heads, queries),
            LEVELS=levels,
            POINTS=points,
            DIM=dim,
            WIDE=triton.next_power_of_2(dim),
            BLOCK=BLOCK,
            TYPE=tl.float64 if locations.dtype == torch.float64 else tl.float32,
            num_warps=4,
        )


def _alert_of_order() -> None:
    """As torch for grid_sample's backward pass on GPUs under torch.use_deterministic_algorithms: raise, or warn."""
    if torch.are_deterministic_algorithms_enabled():
        message = (
            "the backward pass of deformable attention is not deterministic on GPUs, with MODEL.LOC.SAMPLER triton as "
            "with torch: train on a CPU, or turn torch.use_deterministic_algorithms off or set warn_only=True"
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)


def _forward(value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    out = locations.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    _launch(sum_kernel, (value, *_table(tuple(maps), value.device), locations, weights, out), value, locations)
    return out


def _backward(
    grad_out: Tensor, value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _alert_of_order()
    # Accumulated in the compute dtype: one pixel may receive thousands of additions.
    grad_value = torch.zeros_like(value, dtype=locations.dtype)
    grads = grad_value, torch.empty_like(locations), torch.empty_like(weights)
    tensors = (grad_out, value, *_table(tuple(maps), value.device), locations, weights, *grads)
    _launch(grad_kernel, tensors, value, locations)
    return grad_value.to(value.dtype), grads[1], grads[2]


sample_and_sum_triton = define_sampler("deformable_triton", _forward, _backward)
"""`sample_and_sum` on GPUs; values may have any floating dtype and are read without a cast."""
