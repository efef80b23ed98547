"""Whether probabilities mean what they say: reliability bins and the expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15
"""Bins of equal width on [0, 1], as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017."""


def reliability(scores: np.ndarray, labels: np.ndarray) -> dict[str, list[float | None]]:
    """One class's reliability diagram.

    Args:
        scores: (N,) probabilities.
        labels: (N,) float, 1 present, 0 absent, NaN unknown (left out).

    Returns:
        {"images", "score" (mean), "positive" (share of present)}, each with BINS entries, bin b holding the scores of
        [b / BINS, (b + 1) / BINS), the last one 1 as well; None for the two of an empty bin.
    """
    count, score, positive = _bins(scores, labels)
    empty = count == 0
    return {
        "images": [float(v) for v in count],
        "score": [None if e else float(v) for e, v in zip(empty, score, strict=True)],
        "positive": [None if e else float(v) for e, v in zip(empty, positive, strict=True)],
    }


def calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of |mean score - share of present| of their bin; NaN without a known label."""
    count, score, positive = _bins(scores, labels)
    return float((count * np.abs(score - positive)).sum() / count.sum()) if count.sum() else float("nan")


def _bins(scores: np.ndarray, labels: np.ndarray) -> tuple[Any, Any, Any]:
    """Count, mean score and share of present per bin, (BINS,) each; 0 in empty bins."""
    known = ~np.isnan(labels)
    values, present = scores[known].astype(np.float64), labels[known].astype(np.float64)
    index = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(index, minlength=BINS).astype(np.float64)
    filled = np.maximum(count, 1)
    return (
        count,
        np.bincount(index, weights=values, minlength=BINS) / filled,
        np.bincount(index, weights=present, minlength=BINS) / filled,
    )
