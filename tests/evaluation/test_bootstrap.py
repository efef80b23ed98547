from __future__ import annotations

import numpy as np
import pytest

from fx_d2.evaluation import auroc
from fx_d2.evaluation.bootstrap import intervals, mean_over_classes, patient_weights, weighted_means
from fx_d2.evaluation.ranking import RankedClass

pytestmark = pytest.mark.filterwarnings("error")
PATIENTS = [f"p{i // 3}" for i in range(60)]


def all_weights(draws: int, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(patient_weights(PATIENTS, draws, seed)))


def test_patients_are_drawn_with_all_their_images() -> None:
    weights = all_weights(50)
    assert weights.shape == (50, 60) and (weights.sum(axis=1) == 60).all()
    assert (weights.reshape(50, 20, 3) == weights.reshape(50, 20, 3)[:, :, :1]).all()
    assert len({row.tobytes() for row in weights}) == 50
    assert abs(weights.mean() - 1) < 1e-12 and (weights == 0).mean() == pytest.approx(np.exp(-1), abs=0.05)


def test_draws_follow_from_the_seed_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = all_weights(20, seed=3)
    monkeypatch.setattr("fx_d2.evaluation.bootstrap._CHUNK_NUMBERS", 180)
    assert len(list(patient_weights(PATIENTS, 20, 3))) == 7
    assert (all_weights(20, seed=3) == whole).all() and (all_weights(20, seed=4) != whole).any()


def test_intervals_agree_with_drawing_the_images_themselves() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60).astype(float)
    scores = (rng.integers(0, 9, 60) / 9 + 0.3 * labels).astype(np.float32)
    ranked = RankedClass(scores, labels)
    found = intervals(PATIENTS, 300, 7, lambda weights: {"auroc": ranked.metrics(weights)[0]})["auroc"]
    generator, values = np.random.default_rng(7), []
    for _ in range(300):
        drawn = generator.integers(0, 20, 20)
        names = [sorted(set(PATIENTS))[d] for d in drawn]
        images = [i for name in names for i, patient in enumerate(PATIENTS) if patient == name]
        values.append(auroc(scores[images], labels[images]))
    assert found == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-12)


def test_no_draws_no_images_and_draws_that_define_nothing() -> None:
    nothing = {"x": np.array([np.nan])}
    assert intervals(PATIENTS, 0, 0, lambda weights: nothing) == {} == intervals([], 10, 0, lambda weights: nothing)
    undefined = intervals(PATIENTS, 10, 0, lambda weights: {"x": np.full(len(weights), np.nan)})
    assert np.isnan(undefined["x"]).all()


@pytest.mark.parametrize(("defined", "there"), [(90, True), (89, False)])
def test_an_interval_needs_enough_draws(defined: int, there: bool) -> None:
    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": np.where(np.arange(len(weights)) < defined, 0.5, np.nan)}

    found = intervals(PATIENTS, 100, 0, metrics)["x"]
    assert found == (0.5, 0.5) if there else np.isnan(found).all()


def test_means() -> None:
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    weights = np.array([[1, 1, 1], [3, 1, 0], [0, 0, 2]])
    expected = np.array([[2.0, 5.0], [1.5, 5.0], [np.nan, np.nan]])
    assert weighted_means(values, weights) == pytest.approx(expected, nan_ok=True)
    sometimes, always = np.array([1.0, np.nan]), np.array([3.0, 4.0])
    assert mean_over_classes([sometimes, always], 2) == pytest.approx([2.0, np.nan], nan_ok=True)
    assert mean_over_classes([], 2) == pytest.approx([np.nan, np.nan], nan_ok=True)
