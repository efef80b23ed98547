"""Soft Dice loss on independent binary channels."""

from __future__ import annotations

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor

from fx_d2.layers.precision import at_least_float32


def dice_loss(
    logits: Tensor, masks: Tensor, known: Tensor, valid: Tensor, per_class: bool, smooth: float = 1.0
) -> Tensor:
    """1 - (2 I + s) / (P + T + s), with I, P and T summed over the batches of all ranks.

    The Dice of a whole batch is not the mean of the Dice of its parts: each rank gets the loss of the global batch, and
    the ranks' gradients average to its gradient.

    Args:
        logits: (B, C, H, W).
        masks: (B, C, H, W) ground truth in [0, 1].
        known: (B, C) bool; False = channel not annotated in this image, ignored.
        valid: (B, H, W) bool; False = pixels to ignore.
        per_class: True: one Dice per channel, averaged over the channels known in the global batch;
            False: all channels flattened together, as in the reference.
        smooth: s; 1 in the reference.

    Returns:
        Scalar in [0, 1); zero, still attached to the autograd graph, when nothing is known.
    """
    weight = known[:, :, None, None] & valid[:, None]
    probabilities = at_least_float32(logits).sigmoid() * weight
    truth = at_least_float32(masks) * weight
    axes = (0, 2, 3) if per_class else (0, 1, 2, 3)
    overlap = (probabilities * truth).sum(axes)
    total = probabilities.sum(axes) + truth.sum(axes)
    images = known.sum(0).to(overlap.dtype)
    overlap, total, images = _joined(overlap, total, images)
    loss = 1 - (2 * overlap + smooth) / (total + smooth)
    if not per_class:
        return loss
    present = images > 0
    return (loss * present).sum() / present.sum().clamp(min=1)


def _joined(*parts: Tensor) -> list[Tensor]:
    """Tensors summed over ranks, differentiably, in one collective call."""
    joined = differentiable_all_reduce(torch.cat([part.flatten() for part in parts]))
    return [x.view_as(part) for x, part in zip(joined.split([p.numel() for p in parts]), parts, strict=True)]
