"""Multi-scale deformable attention on CPUs in C++; the kernels are in `deformable_cpu.cpp`."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fx_d2.layers.deformable_op import define_sampler
from fx_d2.layers.native import load_library

_TYPES = {torch.float32: "float32", torch.float64: "float64"}


class _Sizes(ctypes.Structure):
    """`Sizes` in the C++ file."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "tokens", "heads", "dim", "levels", "points", "queries")]


@functools.cache
def _library() -> tuple[ctypes.CDLL, str]:
    library, path = load_library(Path(__file__).with_suffix(".cpp"))
    return library, hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def library_digest() -> str:
    """Load the library, compiling it if necessary, and return the first eight hex digits of its SHA-256.

    Raises:
        FXError: it cannot be compiled or loaded, see `native.load_library`.
    """
    return _library()[1]


def _call(
    name: str, before: Sequence[Tensor], maps: Sequence[int], after: Sequence[Tensor], value: Tensor, locations: Tensor
) -> None:
    """Call a library function with the tensors `before`, the level shapes, the tensors `after`, sizes, and threads."""
    types = {tensor.dtype for tensor in (*before, *after)}
    if value.device.type != "cpu" or len(types) > 1 or value.dtype not in _TYPES:
        raise ValueError(f"{value.device} with dtypes {types}: the C++ library needs a CPU and one of {list(_TYPES)}")
    _, queries, _, levels, points, _ = locations.shape
    batch, tokens, heads, dim = value.shape
    function = getattr(_library()[0], f"fx_deformable_{name}_{_TYPES[value.dtype]}")
    function.restype = None
    function(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in before),
        (ctypes.c_int64 * len(maps))(*maps),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in after),
        ctypes.byref(_Sizes(batch, tokens, heads, dim, levels, points, queries)),
        ctypes.c_int(torch.get_num_threads()),
    )


def _forward(value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    out = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    _call("forward", (value,), maps, (locations, weights, out), value, locations)
    return out


def _backward(
    grad_out: Tensor, value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
    _call("backward", (grad_out, value), maps, (locations, weights, *grads), value, locations)
    return grads


sample_and_sum_cpu = define_sampler("deformable_cpu", _forward, _backward)
"""`sample_and_sum` for CPU tensors of one dtype; bitwise independent of the number of threads."""
