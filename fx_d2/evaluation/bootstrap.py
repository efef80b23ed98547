"""Bootstrap intervals by patient: patients are drawn, and all images of a patient come with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

LEVEL = 0.95
"""Share of the draws that an interval holds."""

ENOUGH = 0.9
"""Share of the draws that must define a metric for it to have an interval."""

_CHUNK_NUMBERS = 2_000_000
"""Weights held at once: larger chunks leave the processor's cache and are slower."""


def patient_weights(patients: Sequence[str], draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image occurs in each draw, a few draws at a time.

    The draws depend on nothing but the arguments, so that two models on the same images are drawn alike (paired).

    Args:
        patients: (N,) patient of each image.
        draws: number of draws.
        seed: of the draws.

    Yields:
        (D, N) int64, the draws together; each draws as many patients as there are, with replacement.
    """
    names, codes = np.unique(np.asarray(patients), return_inverse=True)
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_NUMBERS // max(1, len(codes)))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        counts = np.stack(
            [np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(size)]
        )
        yield counts[:, codes]


def intervals(
    patients: Sequence[str], draws: int, seed: int, metrics: Callable[[np.ndarray], Mapping[str, np.ndarray]]
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of several metrics.

    Args:
        patients: (N,) patient of each image.
        draws: number of draws; 0 gives {}.
        seed: of the draws.
        metrics: weights (D, N) -> {name: values (D,)}, NaN where a draw leaves the metric undefined.

    Returns:
        {name: (low, high)} from the draws in which the metric is defined; NaN where these are fewer than ENOUGH, since
        draws that happen to hold every rare class say too little about the others.
    """
    if not draws or not len(patients):
        return {}
    parts = [metrics(weights) for weights in patient_weights(patients, draws, seed)]
    tail = (1 - LEVEL) / 2
    found = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]
        low, high = np.quantile(values, (tail, 1 - tail)) if len(values) >= ENOUGH * draws else (np.nan, np.nan)
        found[name] = (float(low), float(high))
    return found


def weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means (D, C) of the columns of values (N, C) under weights (D, N), NaN entries left out; NaN where none is."""
    known = ~np.isnan(values)
    total = weights @ np.where(known, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / (weights @ known.astype(np.float64))


def mean_over_classes(columns: Sequence[np.ndarray], draws: int) -> np.ndarray:
    """Per draw the mean over classes, (D,); NaN where a draw leaves one undefined, and without a class.

    To leave that class out would compare other sets. Classes that the images themselves do not define are not given.
    """
    return np.mean(columns, axis=0) if columns else np.full(draws, np.nan)
