"""Bootstrap confidence intervals by patient: patients are resampled, each with all of their images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

LEVEL = 0.95
"""Confidence level of the intervals."""

ENOUGH = 0.9
"""A metric gets an interval only if it is defined in at least this share of the resamples."""

_CHUNK_NUMBERS = 2_000_000
"""Weights held at once: larger chunks do not fit the CPU cache and are slower."""


def patient_weights(patients: Sequence[str], draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image occurs in each bootstrap resample, a chunk of resamples at a time.

    The resamples depend only on the arguments, so two models on the same images get the same ones (paired).

    Args:
        patients: (N,) patient id of each image.
        draws: number of resamples.
        seed: seed of the random generator.

    Yields:
        (D, N) int64 counts, `draws` rows over all chunks. Each resample takes as many patients as there are, with
        replacement.
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
    """Percentile bootstrap intervals of several metrics.

    Args:
        patients: (N,) patient id of each image.
        draws: number of resamples; 0 returns {}.
        seed: seed of the random generator.
        metrics: maps weights (D, N) to {name: values (D,)}, NaN where a resample leaves the metric undefined.

    Returns:
        {name: (low, high)} over the resamples that define the metric. NaN if their share is below ENOUGH: resamples
        that happen to contain every rare class do not represent the others.
    """
    if not draws or not len(patients):
        return {}
    parts = [metrics(weights) for weights in patient_weights(patients, draws, seed)]
    return {name: percentiles(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """Interval of the values (D,) of a metric over D resamples; NaN if too few are defined, see `intervals`."""
    defined = values[~np.isnan(values)]
    if not len(defined) or len(defined) < ENOUGH * len(values):
        return float("nan"), float("nan")
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return float(low), float(high)


def weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Column means (D, C) of values (N, C) under weights (D, N), ignoring NaN; NaN where no known value has weight."""
    known = ~np.isnan(values)
    total = weights @ np.where(known, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / (weights @ known.astype(np.float64))


def mean_over_classes(columns: Sequence[np.ndarray], draws: int) -> np.ndarray:
    """Mean over classes in each resample, (D,); NaN if the resample leaves a class undefined or there is no class.

    Leaving that class out would average a different set of classes in each resample. `columns` holds only classes that
    are defined on the full set of images.
    """
    return np.mean(columns, axis=0) if columns else np.full(draws, np.nan)
