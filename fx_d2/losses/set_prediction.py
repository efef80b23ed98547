"""DINO's set loss for all decoder layers at once: matching, focal, L1 and generalized IoU.

Every tensor has a leading layer axis, so one cost tensor, one transfer to the host and one set of kernels serve the
final layer, the auxiliary layers and the proposals; a second call handles the denoising queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.utils import comm
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from fx_d2.layers.boxes import generalized_iou
from fx_d2.layers.precision import at_least_float32
from fx_d2.layers.processes import largest_over_processes, shared_count


@dataclass(frozen=True)
class Targets:
    """The N ground-truth boxes of a batch, in image order.

    Attributes:
        labels: (N,) int64, columns of the logits.
        boxes: (N, 4) (cx, cy, w, h) relative to each image.
        image: (N,) int64, index of the box's image.
        slot: (N,) int64, index of the box within its image.
        counts: number of boxes of each image.
        width: the largest count of any image on any rank, at least 1. It sets the layout of the denoising queries,
            whose padding counts as background in the loss.
    """

    labels: Tensor
    boxes: Tensor
    image: Tensor
    slot: Tensor
    counts: tuple[int, ...]
    width: int

    @classmethod
    def of_batch(cls, labels: Tensor, boxes: Tensor, counts: Sequence[int]) -> Targets:
        """Targets from labels (N,), boxes (N, 4) and counts on the host, without a device sync on a single process.

        A collective call.
        """
        indices = [(image, slot) for image, count in enumerate(counts) for slot in range(count)]
        pair = torch.tensor(indices, dtype=torch.int64).view(-1, 2).T.contiguous()
        image, slot = pair.to(labels.device, non_blocking=True)
        width = largest_over_processes(max(1, *counts), labels.device)
        return cls(labels, boxes, image, slot, tuple(counts), width)

    @property
    def total(self) -> int:
        """Number of boxes in the batch."""
        return len(self.labels)

    def normalizer(self) -> float:
        """Mean number of boxes per rank (total at least 1), the normalizer of DETR losses."""
        # On a single process the count stays on the host, which avoids a device sync.
        device = self.labels.device if comm.get_world_size() > 1 else torch.device("cpu")
        return float(shared_count(torch.tensor(self.total, device=device)))


@dataclass(frozen=True)
class SetLossWeights:
    """Weights of the three loss terms and the three matching costs, and their hyper-parameters (DINO's defaults)."""

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
    """Query-target pairs, in layer order, with the same number of pairs in each layer.

    Attributes:
        query: (R,) int64, flat indices into (L, B, Q).
        target: (R,) int64, indices into the batch's targets.
    """

    query: Tensor
    target: Tensor


@torch.no_grad()
def match_queries(logits: Tensor, boxes: Tensor, targets: Targets, weights: SetLossWeights) -> Match:
    """Hungarian matching: the cheapest one-to-one assignment of queries to targets for every layer and image.

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
    layers, batch, queries = logits.shape[:3]
    table = _costs(logits, boxes, targets, weights).cpu().numpy()  # the criterion's only device sync
    if not np.isfinite(table).all():
        raise FloatingPointError("matching costs are not finite: the decoder's boxes or logits are NaN")
    ends = np.cumsum((0, *targets.counts))
    pairs = [np.empty((2, 0), dtype=np.int64)]
    for layer in range(layers):
        for image in range(batch):
            # Targets as rows: scipy transposes tables with more rows than columns.
            row, column = linear_sum_assignment(table[ends[image] : ends[image + 1], layer])
            pairs.append(np.stack(((layer * batch + image) * queries + column, ends[image] + row)))
    return Match(*torch.from_numpy(np.concatenate(pairs, axis=1)).to(logits.device, non_blocking=True))


def _costs(logits: Tensor, boxes: Tensor, targets: Targets, weights: SetLossWeights) -> Tensor:
    """Cost of assigning each query to each target of its image: (N, L, Q)."""
    prob = at_least_float32(logits)[:, targets.image, :, targets.labels].sigmoid()
    predicted = at_least_float32(boxes).transpose(0, 1)[targets.image]
    truth = at_least_float32(targets.boxes)[:, None, None]
    miss = 1 - prob
    alpha, gamma = weights.focal_alpha, weights.focal_gamma
    cost = (1 - alpha) * weights.cost_class * prob**gamma * (miss + 1e-8).log()
    cost -= alpha * weights.cost_class * miss**gamma * (prob + 1e-8).log()
    cost += weights.cost_l1 * (predicted - truth).abs().sum(-1)
    cost -= weights.cost_giou * generalized_iou(predicted, truth, weights.giou_eps)
    return cost


def set_losses(
    logits: Tensor, boxes: Tensor, targets: Targets, match: Match, normalizer: float, weights: SetLossWeights
) -> dict[str, Tensor]:
    """Weighted losses of each layer.

    Args:
        logits: (L, B, Q, K); unmatched queries are background for every class.
        boxes: (L, B, Q, 4).
        targets: the batch's boxes.
        match: from `match_queries`, or known beforehand for denoising queries.
        normalizer: divisor of the sums.
        weights: loss weights.

    Returns:
        {"class", "l1", "giou"}: (L,); without boxes, "l1" and "giou" are zero but attached to the autograd graph.
    """
    each = (len(logits), len(match.query) // len(logits))
    predicted = at_least_float32(boxes).flatten(0, 2)[match.query]
    truth = at_least_float32(targets.boxes)[match.target]
    overlap = generalized_iou(predicted, truth, weights.giou_eps).view(each)
    distance = (predicted - truth).abs().view(*each, 4)
    focal = _focal(at_least_float32(logits), match.query, targets.labels[match.target], weights)
    return {
        "class": focal.sum((1, 2, 3)) * (weights.loss_class / normalizer),
        "l1": distance.sum((1, 2)) * (weights.loss_l1 / normalizer),
        "giou": (1 - overlap).sum(1) * (weights.loss_giou / normalizer),
    }


def _focal(logits: Tensor, query: Tensor, label: Tensor, weights: SetLossWeights) -> Tensor:
    """Sigmoid focal loss (Lin et al., 2017) of each logit, (L, B, Q, K); the positives are given by (query, label).

    With s the logit, negated for positives, both branches are weight * sigmoid(s)^gamma * softplus(s). fvcore's version
    casts to float32, too coarse for comparisons in float64, and needs twice as many operations.
    """
    sign = torch.ones_like(logits)
    share = torch.full_like(logits, 1 - weights.focal_alpha)
    sign.flatten(0, 2)[query, label] = -1.0
    share.flatten(0, 2)[query, label] = weights.focal_alpha
    wrong = logits * sign
    # From 40 on, softplus is the identity to the last bit of float64; from torch's default threshold of 20 it is not.
    return share * wrong.sigmoid() ** weights.focal_gamma * F.softplus(wrong, threshold=40.0)
