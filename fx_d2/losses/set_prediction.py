"""DINO's set loss for all decoder layers at once: matching, focal, L1 and generalized IoU.

Every tensor carries a leading layer axis, so one cost tensor, one transfer to the host and one set of
kernels serve the final layer, the auxiliary layers and, in a second call, the denoising queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from fx_d2.layers.boxes import generalized_iou, to_centre_size, to_corners
from fx_d2.layers.precision import at_least_float32
from fx_d2.layers.processes import largest_over_processes, shared_count


@dataclass(frozen=True)
class Targets:
    """Boxes of a batch, padded to the largest count T (at least 1) of an image of any process.

    Attributes:
        labels: (B, T) int64, 0 where padded.
        boxes: (B, T, 4) (cx, cy, w, h) relative to each image, 0 where padded.
        counts: number of real boxes of each image.
    """

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_instances(cls, instances: Sequence[Instances], device: torch.device) -> Targets:
        """Pad `gt_classes` and `gt_boxes` (pixels of `image_size`) of each image, on the host, in two transfers.

        Every process pads to the largest count of all: the layout of the denoising queries, whose padding counts as
        background, follows from it.
        """
        counts = tuple(len(x) for x in instances)
        widest = largest_over_processes(max(1, *counts), device)
        labels = torch.zeros(len(counts), widest, dtype=torch.int64)
        boxes = torch.zeros(*labels.shape, 4)
        for i, x in enumerate(instances):
            height, width = x.image_size
            labels[i, : counts[i]] = x.gt_classes
            scale = x.gt_boxes.tensor.new_tensor((width, height, width, height))
            boxes[i, : counts[i]] = to_centre_size(x.gt_boxes.tensor / scale)
        return cls(labels.to(device, non_blocking=True), boxes.to(device, non_blocking=True), counts)

    @property
    def total(self) -> int:
        """Number of real boxes in the batch."""
        return sum(self.counts)

    def normalizer(self) -> float:
        """Mean number of boxes per process, of at least 1 in all: what DETR losses are divided by."""
        # Alone, the number stays on the host: nothing waits for the device.
        device = self.labels.device if comm.get_world_size() > 1 else torch.device("cpu")
        return float(shared_count(torch.tensor(self.total, device=device)))


@dataclass(frozen=True)
class SetLossWeights:
    """Weights of the three loss terms and of the three matching costs (DINO's defaults), and their parameters."""

    loss_class: float = 1.0
    loss_l1: float = 5.0
    loss_giou: float = 2.0
    cost_class: float = 2.0
    cost_l1: float = 5.0
    cost_giou: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    giou_eps: float = 0.0


@dataclass(frozen=True)
class Match:
    """Which query answers for which target: four int64 vectors of equal length (layer, image, query, target)."""

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


@torch.no_grad()
def match_queries(logits: Tensor, boxes: Tensor, targets: Targets, weights: SetLossWeights) -> Match:
    """The cheapest one-to-one assignment of queries to targets, for every layer and image.

    Args:
        logits: (L, B, Q, K).
        boxes: (L, B, Q, 4).
        targets: the batch's boxes.
        weights: matching costs.

    Returns:
        Match on the device of `logits`.

    Raises:
        FloatingPointError: a cost is not finite.
    """
    prob = at_least_float32(logits).sigmoid()
    alpha, gamma = weights.focal_alpha, weights.focal_gamma
    negative = (1 - alpha) * prob**gamma * -(1 - prob + 1e-8).log()
    positive = alpha * (1 - prob) ** gamma * -(prob + 1e-8).log()
    index = targets.labels[None, :, None, :].expand(*prob.shape[:3], -1)
    cost = weights.cost_class * (positive - negative).gather(-1, index)
    predicted, truth = at_least_float32(boxes)[..., :, None, :], at_least_float32(targets.boxes[None, :, None])
    cost += weights.cost_l1 * (predicted - truth).abs().sum(-1)
    cost -= weights.cost_giou * generalized_iou(to_corners(predicted), to_corners(truth), weights.giou_eps)
    table = cost.cpu().numpy()  # the step's one transfer to the host
    rows: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    for layer in range(table.shape[0]):
        for image, count in enumerate(targets.counts):
            block = table[layer, image, :, :count]
            if not np.isfinite(block).all():
                raise FloatingPointError("matching costs are not finite: the decoder's boxes or logits are NaN")
            rows.append((layer, image, *linear_sum_assignment(block)))
    sizes = [len(query) for _, _, query, _ in rows]
    stacked = np.stack(
        (
            np.repeat([r[0] for r in rows], sizes),
            np.repeat([r[1] for r in rows], sizes),
            np.concatenate([r[2] for r in rows]),
            np.concatenate([r[3] for r in rows]),
        )
    ).astype(np.int64)
    return Match(*torch.from_numpy(stacked).to(logits.device, non_blocking=True))


def set_losses(
    logits: Tensor, boxes: Tensor, targets: Targets, match: Match, normalizer: float, weights: SetLossWeights
) -> dict[str, Tensor]:
    """Weighted losses, summed over layers.

    Args:
        logits: (L, B, Q, K); unmatched queries are background for every class.
        boxes: (L, B, Q, 4).
        targets: the batch's boxes.
        match: from `match_queries`, or known beforehand for denoising queries.
        normalizer: what the sums are divided by.
        weights: loss weights.

    Returns:
        {"class", "l1", "giou"}: scalars, zero but attached to the graph when there is no box.
    """
    spot = (match.layer, match.image, match.query)
    labels = targets.labels[match.image, match.target]
    logits = at_least_float32(logits)
    onehot = torch.zeros_like(logits)
    onehot[(*spot, labels)] = 1.0
    focal = _focal_sum(logits, onehot, weights.focal_alpha, weights.focal_gamma)
    predicted = at_least_float32(boxes)[spot]
    truth = at_least_float32(targets.boxes[match.image, match.target])
    overlap = generalized_iou(to_corners(predicted), to_corners(truth), weights.giou_eps)
    return {
        "class": weights.loss_class * focal / normalizer,
        "l1": weights.loss_l1 * F.l1_loss(predicted, truth, reduction="sum") / normalizer,
        "giou": weights.loss_giou * (1 - overlap).sum() / normalizer,
    }


def _focal_sum(logits: Tensor, onehot: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (Lin et al., 2017), summed. fvcore's casts to float32, too coarse to compare in float64."""
    entropy = F.binary_cross_entropy_with_logits(logits, onehot, reduction="none")
    prob = logits.sigmoid()
    miss = prob + onehot - 2 * prob * onehot  # 1 - p of the true side
    return (entropy * miss**gamma * (1 - alpha + (2 * alpha - 1) * onehot)).sum()
