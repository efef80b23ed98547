"""Ranking metrics of one class: AUROC, average precision and operating points; the first two also weighted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class OperatingPoint(NamedTuple):
    """A threshold (scores >= threshold are positive) with its sensitivity and specificity on the images it came from.

    All three are NaN unless the known labels contain both values.
    """

    threshold: float
    sensitivity: float
    specificity: float


class RankedClass:
    """The images with a known label of one class, ranked by score once and evaluated under many weightings.

    Tied scores form one group, so no metric depends on the order of the input.

    Attributes:
        defined: whether the known labels contain both values.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """See the class.

        Args:
            scores: (N,) finite floats, larger = more likely present.
            labels: (N,) float: 1 present, 0 absent, NaN unknown (ignored).
        """
        known = np.flatnonzero(~np.isnan(labels))
        self._order = known[np.argsort(-scores[known].astype(np.float64), kind="stable")]
        positive = labels[self._order] == 1
        ordered = scores[self._order]
        first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, int)
        last = np.r_[first[1:], len(ordered)] - 1 if len(ordered) else first
        count = np.add.reduceat(positive, first, dtype=np.int64) if len(ordered) else first
        # Groups without a positive affect the metrics only through the weight accumulated before later groups.
        kept = count > 0
        self._first, self._last = first[kept], last[kept]
        self._positive = np.flatnonzero(positive)
        self._upto = np.cumsum(count[kept]) - 1
        self.defined = bool(positive.any() and not positive.all())

    def metrics(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision under several weightings of the images at once.

        Args:
            weights: (D, N) integers >= 0: how often each image occurs in each of D resamples.

        Returns:
            Two (D,) float64 arrays. AUROC is the Mann-Whitney statistic, ties counting one half. Average precision is
            the sum of precision times gain in recall over the distinct scores. NaN for a resample without both labels.
        """
        draws = len(weights)
        if not self.defined:
            return np.full(draws, np.nan), np.full(draws, np.nan)
        ordered = weights[:, self._order]
        passed = np.cumsum(ordered, axis=1, dtype=np.int64)
        at_end = passed[:, self._last]
        before = np.where(self._first > 0, passed[:, self._first - 1], 0)
        hits = np.cumsum(ordered[:, self._positive], axis=1, dtype=np.int64)[:, self._upto]
        gain = np.diff(hits, axis=1, prepend=0)
        positives = hits[:, -1].astype(np.float64)
        negatives = passed[:, -1] - positives
        alarms = (at_end - hits) + (before - (hits - gain))  # negatives up to the end of the group, and before it
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = (gain * (negatives[:, None] - alarms / 2)).sum(axis=1) / (positives * negatives)
            precision = np.where(gain > 0, hits / at_end, 0.0)
            average = (gain * precision).sum(axis=1) / positives
        undefined = (positives == 0) | (negatives == 0)
        return np.where(undefined, np.nan, auroc), np.where(undefined, np.nan, average)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUROC as the Mann-Whitney statistic; tied scores count one half.

    Args:
        scores: (N,) float, larger = more likely present.
        labels: (N,) float: 1 present, 0 absent, NaN unknown (ignored).

    Returns:
        A value in [0, 1], or NaN unless the known labels contain both values.
    """
    return float(RankedClass(scores, labels).metrics(np.ones((1, len(scores)), np.int64))[0][0])


def operating_point(scores: np.ndarray, labels: np.ndarray, specificity: float) -> OperatingPoint:
    """The threshold with the highest sensitivity among those whose specificity is at least `specificity`.

    Arguments as in `auroc`. If no score reaches that specificity, the threshold lies just above all scores.
    """
    known = ~np.isnan(labels)
    values, positive = scores[known].astype(np.float64), labels[known] == 1
    if not positive.any() or positive.all():
        return OperatingPoint(np.nan, np.nan, np.nan)
    negatives = np.sort(values[~positive])
    # At least this many negatives must lie below the threshold; the slack absorbs rounding errors of the product.
    below = int(np.ceil(specificity * len(negatives) - 1e-9))
    if below == 0:
        threshold = float(values.min())
    else:
        higher = values[values > negatives[below - 1]]
        threshold = float(higher.min()) if len(higher) else float(np.nextafter(values.max(), np.inf))
    return OperatingPoint(threshold, *rates(scores, labels, threshold))


def rates(scores: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity at a threshold; NaN without an image of that label. Arguments as in `auroc`."""
    above = scores.astype(np.float64) >= threshold
    positive, negative = labels == 1, labels == 0
    return (
        float(above[positive].mean()) if positive.any() else float("nan"),
        float((~above[negative]).mean()) if negative.any() else float("nan"),
    )
