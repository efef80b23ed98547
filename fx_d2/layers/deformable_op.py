"""Register deformable attention kernels as torch operators, with autograd and fake-tensor support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Sampler = Callable[[Tensor, Sequence[tuple[int, int]], Tensor, Tensor], Tensor]
"""A function like `deformable_attention.sample_and_sum`."""


def define_sampler(
    name: str,
    forward: Callable[[Tensor, Sequence[int], Tensor, Tensor], Tensor],
    backward: Callable[[Tensor, Tensor, Sequence[int], Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
) -> Sampler:
    """Register the operators fx_d2::<name> and fx_d2::<name>_backward.

    Args:
        name: of the operator.
        forward: (values, flat list of (H, W) of all levels, locations, weights) -> sums. The tensors are those of
            `sample_and_sum`, contiguous and checked. The result has the dtype of the locations.
        backward: (gradient of the sums, then as `forward`) -> gradients of values, locations and weights.

    Returns:
        A differentiable function (first order only). It raises a ValueError for inconsistent shapes, dtypes or devices.
    """

    def run_forward(value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
        _check(value, maps, locations, weights)
        return forward(value.contiguous(), maps, locations.contiguous(), weights.contiguous())

    def run_backward(
        grad_out: Tensor, value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return backward(grad_out.contiguous(), value.contiguous(), maps, locations.contiguous(), weights.contiguous())

    operator: Any = torch.library.custom_op(f"fx_d2::{name}", run_forward, mutates_args=())
    gradient: Any = torch.library.custom_op(f"fx_d2::{name}_backward", run_backward, mutates_args=())

    def fake_forward(value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
        del maps, weights
        return locations.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    def fake_backward(
        grad_out: Tensor, value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        del grad_out, maps
        return tuple(x.new_empty(x.shape) for x in (value, locations, weights))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        value, ctx.maps, locations, weights = inputs
        ctx.save_for_backward(value, locations, weights)

    def differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        grads = gradient(grad_out, value, ctx.maps, locations, weights)
        return grads[0], None, grads[1], grads[2]

    operator.register_fake(fake_forward)
    gradient.register_fake(fake_backward)
    operator.register_autograd(differentiate, setup_context=keep)

    def sample(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = operator(value, [side for shape in shapes for side in shape], locations, weights)
        return out

    return sample


def _check(value: Tensor, maps: Sequence[int], locations: Tensor, weights: Tensor) -> None:
    """The kernels take raw pointers and check nothing."""
    batch, tokens, heads, _ = value.shape
    area = sum(h * w for h, w in zip(maps[::2], maps[1::2], strict=True))
    want = (batch, locations.shape[1], heads, len(maps) // 2, locations.shape[4])
    if not maps or min(maps) < 1 or area != tokens or locations.shape != (*want, 2) or weights.shape != want:
        raise ValueError(
            f"values {tuple(value.shape)}, maps {list(maps)}, locations {tuple(locations.shape)} and weights "
            f"{tuple(weights.shape)} are inconsistent"
        )
    if locations.dtype not in (torch.float32, torch.float64) or weights.dtype != locations.dtype:
        raise ValueError(
            f"locations are {locations.dtype}, weights {weights.dtype}: both must be float32 or both float64"
        )
    if not value.device == locations.device == weights.device:
        raise ValueError(f"devices {value.device}, {locations.device} and {weights.device} differ")
