"""Soft Dice loss on independent binary channels."""

from __future__ import annotations

from torch import Tensor

from fx_d2.layers.precision import at_least_float32


def dice_loss(
    logits: Tensor, masks: Tensor, known: Tensor, valid: Tensor, per_class: bool, smooth: float = 1.0
) -> Tensor:
    """1 - (2 I + s) / (P + T + s), with I, P, T summed over the batch.

    Args:
        logits: (B, C, H, W).
        masks: (B, C, H, W) truth in [0, 1].
        known: (B, C) bool; channels of an image that were not annotated are left out.
        valid: (B, H, W) bool; False = pixels to ignore.
        per_class: True: one Dice per channel, averaged over channels known in this batch;
            False: all channels flattened together, as in the reference.
        smooth: s, the reference's 1.

    Returns:
        Scalar in [0, 1); zero, still attached to the graph, when nothing is known.
    """
    weight = known[:, :, None, None] & valid[:, None]
    probabilities = at_least_float32(logits).sigmoid() * weight
    truth = at_least_float32(masks) * weight
    axes = (0, 2, 3) if per_class else (0, 1, 2, 3)
    overlap = (probabilities * truth).sum(axes)
    total = probabilities.sum(axes) + truth.sum(axes)
    loss = 1 - (2 * overlap + smooth) / (total + smooth)
    if not per_class:
        return loss
    present = known.any(0)
    return (loss * present).sum() / present.sum().clamp(min=1)
