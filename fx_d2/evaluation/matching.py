"""Matching of predicted to ground-truth boxes by COCO's rules, average precision and FROC.

Rules and results are those of pycocotools (differences below 1e-12 in the tests). pycocotools loops in Python over
images, thresholds and boxes; here the only loop is over boxes that compete for several ground-truth boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recall levels at which COCO samples the precision."""

FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which FROC samples the sensitivity, as in LUNA16."""

HIT, MISS, IGNORED = 1, 0, -1


class Matches(NamedTuple):
    """The predicted boxes of one image that count, highest score first, and whether they hit.

    Attributes:
        kept: (D,) their indices among the boxes passed in.
        rank: (D,) int32, 0 = highest-scoring box of its class in the image.
        hits: (D, T) int8 per IoU threshold: HIT, MISS or IGNORED.
    """

    kept: np.ndarray
    rank: np.ndarray
    hits: np.ndarray


def box_iou(boxes: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (D, G) of xywh boxes in float64; for crowd regions, the fraction of the box inside the region."""
    corner = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    far = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], truth[None, :, :2] + truth[None, :, 2:])
    sides = far - corner
    shared = np.where((sides > 0).all(axis=2), sides[..., 0] * sides[..., 1], 0.0)
    area = (boxes[:, 2] * boxes[:, 3])[:, None]
    union = np.where(crowd, area, area + truth[:, 2] * truth[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def match_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    truth: np.ndarray,
    truth_classes: np.ndarray,
    thresholds: Sequence[float],
    max_boxes: int,
    crowd: np.ndarray | None = None,
) -> Matches:
    """Match the boxes of one image, highest score first, each to the unmatched ground-truth box with the largest IoU.

    Only boxes of the same class match.

    Args:
        boxes: (D, 4) float64 xywh, predicted.
        scores: (D,) finite; ties keep the input order.
        classes: (D,) int.
        truth: (G, 4) float64 xywh, ground truth.
        truth_classes: (G,) int.
        thresholds: T IoU thresholds, matched independently.
        max_boxes: number of boxes kept per class.
        crowd: (G,) bool: regions in which a box that hits nothing else is ignored. None = no such regions.
    """
    kept = np.argsort(-scores, kind="stable")
    rank = rank_in_class(classes[kept])
    kept, rank = kept[rank < max_boxes], rank[rank < max_boxes]
    crowd = np.zeros(len(truth), bool) if crowd is None else crowd
    # As in COCO, a perfect overlap passes a threshold of 1 despite rounding.
    limits = np.minimum(np.asarray(thresholds, np.float64), 1 - 1e-10)
    hits = np.zeros((len(kept), len(limits)), np.int8)
    # COCO's area range starts at 0: a box with one negative side, which cannot match anything, is ignored.
    hits[boxes[kept, 2] * boxes[kept, 3] < 0] = IGNORED
    if not len(truth) or not len(kept):
        return Matches(kept, rank, hits)
    iou = box_iou(boxes[kept], truth, crowd)
    iou[classes[kept][:, None] != truth_classes[None, :]] = -1.0
    singles, levels = iou[:, ~crowd], np.arange(len(limits))
    near = singles >= limits.min()
    competing = near.sum(axis=1) > 1
    contested = near[competing].any(axis=0)
    # Boxes near the other ground-truth boxes are near only one: the first that passes a threshold matches it.
    passes = singles[:, ~contested, None] >= limits
    truths, at = np.nonzero(passes.any(axis=0))
    hits[passes.argmax(axis=0)[truths, at], at] = HIT
    free = np.ones((len(limits), singles.shape[1]), bool)
    for i in np.flatnonzero(near[:, contested].any(axis=1)):
        candidates = np.where(free & (singles[i] >= limits[:, None]), singles[i], -1.0)
        # Of two equal overlaps COCO takes the later ground-truth box.
        best = candidates.shape[1] - 1 - candidates[:, ::-1].argmax(axis=1)
        found = candidates[levels, best] >= 0
        hits[i, found] = HIT
        free[levels[found], best[found]] = False
    if crowd.any():
        inside = iou[:, crowd].max(axis=1)[:, None] >= limits
        hits[(hits == MISS) & inside] = IGNORED
    return Matches(kept, rank, hits)


def rank_in_class(classes: np.ndarray) -> np.ndarray:
    """For each entry, the number of earlier entries of the same class."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    first = np.searchsorted(ordered, ordered, side="left")
    rank = np.empty(len(classes), np.int32)
    rank[order] = np.arange(len(classes)) - first
    return rank


def average_precisions(hits: np.ndarray, image: np.ndarray, weights: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """COCO average precision of one class at one threshold, for several weightings of the images at once.

    Memory grows with resamples x hits (at most the number of ground-truth boxes), not with resamples x boxes.

    Args:
        hits: (D,) HIT, MISS or IGNORED: boxes of all images, highest score first, ties in the order of the images.
        image: (D,) int, image index of each box.
        weights: (W, N) integers >= 0: how often each of N images occurs in each of W resamples.
        positives: (W,) ground-truth boxes in each resample.

    Returns:
        (W,) float64, NaN without ground-truth boxes.
    """
    # Precision rises only at hits, which therefore determine its envelope and the recalls.
    at_hits, counted = np.flatnonzero(hits == HIT), np.flatnonzero(hits != IGNORED)
    ends = np.searchsorted(counted, at_hits, side="right")
    # One row per hit: for each image, the number of boxes since the previous hit.
    passing = image[counted[: ends[-1]]] if len(ends) else counted[:0]
    entries = np.ones(len(passing), np.int64), passing, np.append(0, ends)
    since = sparse.csr_array(entries, (len(at_hits), weights.shape[1]))
    passed = np.cumsum(since @ weights.T, axis=0, dtype=np.int64).T
    ours = weights[:, image[at_hits]]
    found = np.cumsum(ours, axis=1, dtype=np.float64)
    result = np.full(len(weights), np.nan)
    for draw in np.flatnonzero(positives > 0):
        present = ours[draw] > 0
        recall = found[draw, present] / positives[draw]
        precision = found[draw, present] / passed[draw, present]
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        result[draw] = envelope[np.searchsorted(recall, RECALLS, side="left")].mean()
    return result


def froc(scores: np.ndarray, hits: np.ndarray, positives: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Free-response (FROC) curve of one class: the origin, then a point per distinct score, highest score first.

    Args:
        scores: (D,) scores of the boxes of all images, highest first.
        hits: (D,) HIT, MISS or IGNORED; a second box on the same ground-truth box is a MISS.
        positives: number of ground-truth boxes, at least 1.
        images: number of images, including those without boxes.

    Returns:
        False positives per image and sensitivity, float64 (P,) each, both starting at 0 and non-decreasing.
    """
    ordered, hit = scores[hits != IGNORED], hits[hits != IGNORED] == HIT
    # Boxes with equal scores pass a threshold together.
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if len(ordered) else np.zeros(0, int)
    alarms, found = np.cumsum(~hit)[ends], np.cumsum(hit)[ends]
    return np.r_[0.0, alarms / images], np.r_[0.0, found / positives]


def sensitivities(alarms: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Sensitivity (7,) at FALSE_POSITIVES: the best that a threshold reaches without exceeding the rate."""
    return sensitivity[np.searchsorted(alarms, FALSE_POSITIVES, side="right") - 1]
