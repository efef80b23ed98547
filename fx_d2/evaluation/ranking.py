"""What the order of scores says about one class: AUROC, average precision, operating points; weighted or not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class OperatingPoint(NamedTuple):
    """A threshold (an image counts as positive from this score on) and what it gives on the images it was taken from.

    All three are NaN where the known labels do not hold both values.
    """

    threshold: float
    sensitivity: float
    specificity: float


class RankedClass:
    """The images of one class with a known label, best score first, ready for many weightings.

    Tied scores form one group, whatever the order in which they came: no metric depends on it.

    Attributes:
        defined: whether the known labels hold both values.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """See the class.

        Args:
            scores: (N,) finite floats, larger = more likely present.
            labels: (N,) float, 1 present, 0 absent, NaN unknown (left out).
        """
        known = np.flatnonzero(~np.isnan(labels))
        self._order = known[np.argsort(-scores[known].astype(np.float64), kind="stable")]
        positive = labels[self._order] == 1
        ordered = scores[self._order]
        first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, int)
        last = np.r_[first[1:], len(ordered)] - 1 if len(ordered) else first
        count = np.add.reduceat(positive, first, dtype=np.int64) if len(ordered) else first
        # Groups without a positive change neither metric but through the weight that passes by.
        kept = count > 0
        self._first, self._last = first[kept], last[kept]
        self._positive = np.flatnonzero(positive)
        self._upto = np.cumsum(count[kept]) - 1
        self.defined = bool(positive.any() and not positive.all())

    def metrics(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision under several weightings of the images at once.

        Args:
            weights: (D, N) integers >= 0: how often each image occurs in each of D draws.

        Returns:
            Two (D,) float64 arrays. AUROC is the Mann-Whitney statistic, ties counting one half; average precision the
            sum of precision times gain in recall over the distinct scores. NaN for a draw without both label values.
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
        alarms = (at_end - hits) + (before - (hits - gain))  # twice the mean of both ends of the group
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
        labels: (N,) float, 1 present, 0 absent, NaN unknown (left out).

    Returns:
        A value in [0, 1], or NaN when the known labels do not hold both values.
    """
    return float(RankedClass(scores, labels).metrics(np.ones((1, len(scores)), np.int64))[0][0])


def operating_point(scores: np.ndarray, labels: np.ndarray, specificity: float) -> OperatingPoint:
    """The threshold of highest sensitivity among those whose specificity is at least `specificity`.

    Arguments as `auroc`. Where even the best score is too low for it, the threshold lies just above all scores.
    """
    known = ~np.isnan(labels)
    values, positive = scores[known].astype(np.float64), labels[known] == 1
    if not positive.any() or positive.all():
        return OperatingPoint(np.nan, np.nan, np.nan)
    negatives = np.sort(values[~positive])
    # At least this many negatives must lie below; the slack keeps 0.9 * 10 from asking for ten.
    below = int(np.ceil(specificity * len(negatives) - 1e-9))
    if below == 0:
        threshold = float(values.min())
    else:
        higher = values[values > negatives[below - 1]]
        threshold = float(higher.min()) if len(higher) else float(np.nextafter(values.max(), np.inf))
    return OperatingPoint(threshold, *rates(scores, labels, threshold))


def rates(scores: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity at a threshold; each NaN without an image of its label. Arguments as `auroc`."""
    above = scores.astype(np.float64) >= threshold
    positive, negative = labels == 1, labels == 0
    return (
        float(above[positive].mean()) if positive.any() else float("nan"),
        float((~above[negative]).mean()) if negative.any() else float("nan"),
    )
