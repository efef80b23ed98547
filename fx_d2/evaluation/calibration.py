"""Calibration of predicted probabilities: reliability diagrams and the expected calibration error (ECE)."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15
"""Number of equal-width bins on [0, 1], as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017."""


def reliability(scores: np.ndarray, labels: np.ndarray) -> dict[str, list[float | None]]:
    """Reliability diagram of one class.

    Args:
        scores: (N,) probabilities.
        labels: (N,) float: 1 present, 0 absent, NaN unknown (ignored).

    Returns:
        {"images" (count), "score" (mean), "positive" (fraction present)}, BINS entries each. Bin b covers scores in
        [b / BINS, (b + 1) / BINS); the last bin includes 1. "score" and "positive" are None for empty bins.
    """
    count, score, positive = _bins(scores, labels)
    empty = count == 0
    return {
        "images": [float(v) for v in count],
        "score": [None if e else float(v) for e, v in zip(empty, score, strict=True)],
        "positive": [None if e else float(v) for e, v in zip(empty, positive, strict=True)],
    }


def calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of |mean score - fraction present| in their bin; NaN without known labels."""
    count, score, positive = _bins(scores, labels)
    return float((count * np.abs(score - positive)).sum() / count.sum()) if count.sum() else float("nan")


def _bins(scores: np.ndarray, labels: np.ndarray) -> tuple[Any, Any, Any]:
    """Count, mean score and fraction present per bin, (BINS,) each; 0 in empty bins."""
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
