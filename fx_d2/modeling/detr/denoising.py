"""Contrastive denoising (DINO): noised ground truth as extra queries, built without a loop over images.

Queries are laid out as (groups, 2, T): in each group T positives, then T negatives, where T is the largest number of
boxes of any image on any rank. A batch without boxes still gets padding queries, so the same parameters take part in
the backward pass on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fx_d2.layers.boxes import inverse_sigmoid, to_centre_size, to_corners
from fx_d2.layers.constants import constant
from fx_d2.losses.set_prediction import Match, Targets


@dataclass(frozen=True)
class NoisedQueries:
    """Denoising queries, placed before the learned ones.

    Attributes:
        labels: (B, P) int64 noised class of each query.
        references: (B, P, 4) float32 noised boxes before the sigmoid.
        real: (B, P) bool, False on padding.
        blocked: (P + Q, P + Q) bool attention mask, True = may not attend.
        groups: number of groups; multiplies the normalizer of the losses.
    """

    labels: Tensor
    references: Tensor
    real: Tensor
    blocked: Tensor
    groups: int


def noise_targets(
    targets: Targets, *, num_queries: int, num_classes: int, pairs: int, label_noise: float, box_noise: float
) -> NoisedQueries:
    """Sample noised copies of the ground truth.

    Args:
        targets: the batch's boxes.
        num_queries: learned queries that follow, for the attention mask.
        num_classes: flipped labels are uniform over these.
        pairs: approximate number of positive-negative pairs per image; groups = pairs // T, at least 1.
            0 = no denoising: no groups and no queries, but the label embedding still takes part in the backward pass.
        label_noise: half of it is the probability that a label is resampled.
        box_noise: positives move each side by up to this fraction of half the box, negatives by one to two times it.
    """
    device, width = targets.labels.device, targets.width
    batch, image, slot = len(targets.counts), targets.image, targets.slot
    groups = max(pairs // width, 1) if pairs > 0 else 0
    layout = (groups, 2, targets.total)
    redraw, other, sign, reach = _draw(layout, num_classes, label_noise * 0.5, device)
    labels = torch.where(redraw, other, targets.labels)
    boxes = targets.boxes.float()  # like the noise: a float64 model must get the reference's values
    half = (boxes[:, 2:] / 2).repeat(1, 2)
    reach[:, 1] += 1
    corners = (to_corners(boxes) + sign * reach * half * box_noise).clamp(0, 1)

    padded_labels = labels.new_zeros(batch, groups, 2, width)
    padded_boxes = boxes.new_zeros(batch, groups, 2, width, 4)
    real = torch.zeros(batch, groups, 2, width, dtype=torch.bool, device=device)
    padded_labels[image, :, :, slot] = labels.permute(2, 0, 1)
    padded_boxes[image, :, :, slot] = inverse_sigmoid(to_centre_size(corners)).permute(2, 0, 1, 3)
    real[image, :, :, slot] = True
    (blocked,) = _attention_mask(groups, 2 * width, num_queries, device)
    return NoisedQueries(padded_labels.flatten(1), padded_boxes.flatten(1, 3), real.flatten(1), blocked, groups)


def _draw(
    layout: tuple[int, int, int], num_classes: int, flip: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample all noise for N boxes, for a layout of (groups, 2, N).

    Shapes are fixed, which avoids a device sync: every query gets a new label, used or not.

    Returns:
        which labels to resample (*layout) bool, the new labels (*layout) int64, and for each box side the direction
        (*layout, 4), -1 or 1, and the relative size (*layout, 4) in [0, 1) of its displacement.
    """
    redraw = torch.rand(layout, device=device) < flip
    other = torch.randint(0, num_classes, layout, device=device)
    sign = torch.randint(0, 2, (*layout, 4), device=device) * 2.0 - 1.0
    return redraw, other, sign, torch.rand((*layout, 4), device=device)


def denoising_match(targets: Targets, noised: NoisedQueries, layers: int) -> Match:
    """The known assignment: each positive is matched to its source box, in every group and layer."""
    batch, queries = noised.labels.shape
    device = targets.labels.device
    layer = torch.arange(layers, device=device)[:, None, None] * (batch * queries)
    group = torch.arange(noised.groups, device=device)[:, None] * (2 * targets.width)
    query = layer + group + (targets.image * queries + targets.slot)
    target = torch.arange(targets.total, device=device).expand_as(query)
    return Match(query.flatten(), target.flatten())


@constant
def _attention_mask(groups: int, size: int, num_queries: int, device: torch.device) -> tuple[Tensor]:
    """Groups attend to themselves and the learned queries; learned queries attend to no group."""
    owner = torch.arange(groups * size, device=device) // size
    owner = torch.cat((owner, owner.new_full((num_queries,), -1)))
    return ((owner[:, None] != owner[None, :]) & (owner[None, :] >= 0),)
