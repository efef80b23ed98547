"""Which boxes hit a truth box, by COCO's rules, and what follows: average precision, recall, FROC.

The rules and the numbers are those of pycocotools (differences below 1e-12 in the tests). It loops in Python over
images, thresholds and boxes; here only boxes that compete for more than one truth box are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recall levels at which COCO reads the precision."""

FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which FROC reads the sensitivity, as in LUNA16."""

HIT, MISS, IGNORED = 1, 0, -1


class Matches(NamedTuple):
    """The boxes of one image that count, best first, and whether they hit.

    Attributes:
        kept: (D,) their places among the boxes given.
        rank: (D,) int32, 0 = best box of its class in the image.
        hits: (D, T) int8 per IoU threshold, HIT, MISS or IGNORED.
    """

    kept: np.ndarray
    rank: np.ndarray
    hits: np.ndarray


def box_iou(boxes: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (D, G) of xywh boxes in float64; against a crowd region the part of the box that lies inside it."""
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
    """Match the boxes of one image, best score first, each to the free truth box of its class that it overlaps most.

    Args:
        boxes: (D, 4) float64 xywh.
        scores: (D,) finite; among equals the order given counts.
        classes: (D,) int.
        truth: (G, 4) float64 xywh.
        truth_classes: (G,) int.
        thresholds: T IoU thresholds, each matched for itself.
        max_boxes: boxes of a class that count.
        crowd: (G,) bool: regions in which a box that hits nothing else is ignored. None = there are none.
    """
    kept = np.argsort(-scores, kind="stable")
    rank = rank_in_class(classes[kept])
    kept, rank = kept[rank < max_boxes], rank[rank < max_boxes]
    crowd = np.zeros(len(truth), bool) if crowd is None else crowd
    # COCO lets a box that fits exactly pass a threshold of 1 in spite of rounding.
    limits = np.minimum(np.asarray(thresholds, np.float64), 1 - 1e-10)
    hits = np.zeros((len(kept), len(limits)), np.int8)
    # COCO's range of areas begins at 0: it ignores a box with one side below 0, which no truth box can meet.
    hits[boxes[kept, 2] * boxes[kept, 3] < 0] = IGNORED
    if not len(truth) or not len(kept):
        return Matches(kept, rank, hits)
    iou = box_iou(boxes[kept], truth, crowd)
    iou[classes[kept][:, None] != truth_classes[None, :]] = -1.0
    singles, levels = iou[:, ~crowd], np.arange(len(limits))
    near = singles >= limits.min()
    torn = near.sum(axis=1) > 1
    contested = near[torn].any(axis=0)
    # The boxes near any other truth box are near no second one: the first that passes a threshold has it.
    passes = singles[:, ~contested, None] >= limits
    truths, at = np.nonzero(passes.any(axis=0))
    hits[passes.argmax(axis=0)[truths, at], at] = HIT
    free = np.ones((len(limits), singles.shape[1]), bool)
    for i in np.flatnonzero(near[:, contested].any(axis=1)):
        candidates = np.where(free & (singles[i] >= limits[:, None]), singles[i], -1.0)
        # Of two equal overlaps COCO takes the later truth box.
        best = candidates.shape[1] - 1 - candidates[:, ::-1].argmax(axis=1)
        found = candidates[levels, best] >= 0
        hits[i, found] = HIT
        free[levels[found], best[found]] = False
    if crowd.any():
        inside = iou[:, crowd].max(axis=1)[:, None] >= limits
        hits[(hits == MISS) & inside] = IGNORED
    return Matches(kept, rank, hits)


def rank_in_class(classes: np.ndarray) -> np.ndarray:
    """For each entry how many of the entries before it have its class."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    first = np.searchsorted(ordered, ordered, side="left")
    rank = np.empty(len(classes), np.int32)
    rank[order] = np.arange(len(classes)) - first
    return rank


def average_precisions(hits: np.ndarray, image: np.ndarray, weights: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """COCO's average precision of one class at one threshold, under several weightings of the images at once.

    Memory grows with draws x hits, of which there are no more than truth boxes, not with draws x boxes.

    Args:
        hits: (D,) HIT, MISS or IGNORED: the boxes of all images, best score first, equal ones in order of the images.
        image: (D,) int, the image of each box.
        weights: (W, N) integers >= 0: how often each of N images occurs in each of W draws.
        positives: (W,) truth boxes in each draw.

    Returns:
        (W,) float64, NaN where there is no truth box.
    """
    # Precision rises only at hits, so that its envelope and the recalls are known from there.
    places, counted = np.flatnonzero(hits == HIT), np.flatnonzero(hits != IGNORED)
    ends = np.searchsorted(counted, places, side="right")
    # A row a hit: of each image the boxes that have passed since the hit before it.
    passing = image[counted[: ends[-1]]] if len(ends) else counted[:0]
    entries = np.ones(len(passing), np.int64), passing, np.append(0, ends)
    since = sparse.csr_array(entries, (len(places), weights.shape[1]))
    passed = np.cumsum(since @ weights.T, axis=0, dtype=np.int64).T
    ours = weights[:, image[places]]
    found = np.cumsum(ours, axis=1, dtype=np.float64)
    result = np.full(len(weights), np.nan)
    for draw in np.flatnonzero(positives > 0):
        drawn = ours[draw] > 0
        recall = found[draw, drawn] / positives[draw]
        precision = found[draw, drawn] / passed[draw, drawn]
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        result[draw] = envelope[np.searchsorted(recall, RECALLS, side="left")].mean()
    return result


def froc(scores: np.ndarray, hits: np.ndarray, positives: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Free-response curve of one class: a point for each distinct score, from the highest on, after the origin.

    Args:
        scores: (D,) of the boxes of all images, best first.
        hits: (D,) HIT, MISS or IGNORED; a second box on the same truth box is a MISS.
        positives: number of truth boxes, at least 1.
        images: number of images, healthy ones included.

    Returns:
        False positives per image and sensitivity, float64 (P,) each, both from 0 on and never falling.
    """
    ordered, hit = scores[hits != IGNORED], hits[hits != IGNORED] == HIT
    # Boxes of one score pass a threshold together.
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if len(ordered) else np.zeros(0, int)
    alarms, found = np.cumsum(~hit)[ends], np.cumsum(hit)[ends]
    return np.r_[0.0, alarms / images], np.r_[0.0, found / positives]


def sensitivities(alarms: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Sensitivity (7,) at FALSE_POSITIVES: the best that a threshold reaches without passing the rate."""
    return sensitivity[np.searchsorted(alarms, FALSE_POSITIVES, side="right") - 1]
