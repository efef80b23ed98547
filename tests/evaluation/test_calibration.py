from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_d2.evaluation.calibration import BINS, calibration_error, reliability


def brute_force(scores: np.ndarray, labels: np.ndarray) -> float:
    bins: dict[int, list[tuple[float, float]]] = {}
    for score, label in zip(scores.tolist(), labels.tolist(), strict=True):
        bins.setdefault(min(int(score * BINS), BINS - 1), []).append((score, label))
    return sum(abs(sum(s for s, _ in b) - sum(y for _, y in b)) for b in bins.values()) / len(scores)


@settings(deadline=2000, max_examples=50, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_agrees_with_a_loop_over_bins(pairs: list[tuple[float, int]]) -> None:
    scores, labels = np.array(pairs, dtype=float).T
    assert calibration_error(scores, labels) == pytest.approx(brute_force(scores, labels), abs=1e-12)


def test_bins_of_a_diagram() -> None:
    scores = np.array([0.0, 0.01, 1.0, 0.5, 0.9])
    labels = np.array([0.0, 1.0, 1.0, np.nan, 1.0])
    found = reliability(scores, labels)
    assert found["images"] == [2, *[0] * (BINS - 3), 1, 1]
    assert found["score"][0] == pytest.approx(0.005) and found["positive"][0] == 0.5
    assert found["score"][7] is None and found["positive"][-1] == 1.0


def test_perfect_undefined_and_worst() -> None:
    assert calibration_error(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.0
    assert calibration_error(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == 1.0
    assert np.isnan(calibration_error(np.array([0.3]), np.array([np.nan])))
