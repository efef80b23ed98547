from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score

from fx_d2.evaluation import auroc
from fx_d2.evaluation.ranking import RankedClass, operating_point, rates

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")
QUICK = settings(deadline=2000, max_examples=60, derandomize=True)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Of all images, each counted once."""
    return float(RankedClass(scores, labels).metrics(np.ones((1, len(scores)), np.int64))[1][0])


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Few images and fewer score levels: ties, one image, one label value and unknown labels are the rule."""
    count = draw(st.integers(1, 25))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = draw(hnp.arrays(np.float32, count, elements=st.integers(0, levels).map(lambda v: np.float32(v / levels))))
    labels = draw(hnp.arrays(np.float64, count, elements=st.sampled_from([0.0, 1.0, 1.0, 0.0, NAN])))
    return scores, labels


@QUICK
@given(rankings())
def test_agrees_with_scikit_learn_or_is_undefined(pair: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = pair
    known = ~np.isnan(labels)
    if len(set(labels[known])) < 2:
        assert np.isnan(auroc(scores, labels)) and np.isnan(average_precision(scores, labels))
        return
    assert abs(auroc(scores, labels) - roc_auc_score(labels[known], scores[known])) < 1e-12
    assert abs(average_precision(scores, labels) - average_precision_score(labels[known], scores[known])) < 1e-12


@QUICK
@given(rankings(), st.integers(0, 10))
def test_a_weight_is_that_many_copies_of_the_image(pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    scores, labels = pair
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(scores)))
    found = RankedClass(scores, labels).metrics(weights)
    for draw, weight in enumerate(weights):
        copies = np.repeat(np.arange(len(scores)), weight)
        for k, metric in enumerate((auroc, average_precision)):
            expected = metric(scores[copies], labels[copies])
            assert found[k][draw] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@QUICK
@given(rankings(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(pair: tuple[np.ndarray, np.ndarray], random: object) -> None:
    scores, labels = pair
    order = list(range(len(scores)))
    random.shuffle(order)
    assert auroc(scores, labels) == pytest.approx(auroc(scores[order], labels[order]), abs=0, nan_ok=True)
    ours, theirs = average_precision(scores, labels), average_precision(scores[order], labels[order])
    assert ours == pytest.approx(theirs, abs=1e-15, nan_ok=True)


@QUICK
@given(rankings(), st.sampled_from([0.5, 0.8, 0.9, 0.99]))
def test_no_threshold_beats_the_operating_point(pair: tuple[np.ndarray, np.ndarray], specificity: float) -> None:
    scores, labels = pair
    point = operating_point(scores, labels, specificity)
    if len(set(labels[~np.isnan(labels)])) < 2:
        assert np.isnan(point).all()
        return
    assert rates(scores, labels, point.threshold) == point[1:]
    assert point.specificity >= specificity - 1e-12
    reachable = [rates(scores, labels, float(t)) for t in [*scores.astype(np.float64), np.inf]]
    assert point.sensitivity == max(hit for hit, quiet in reachable if quiet >= specificity - 1e-12)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, NAN], [NAN, NAN, NAN], []])
def test_one_label_value_is_undefined(labels: list[float]) -> None:
    assert np.isnan(auroc(np.linspace(0, 1, len(labels)), np.array(labels, dtype=float)))


def test_values_known_by_hand() -> None:
    labels = np.array([1, 0, NAN, 1, NAN, 0])
    scores = np.array([0.9, 0.95, 0.0, 0.8, 1.0, 0.1])
    assert auroc(scores, labels) == 0.5
    assert average_precision(scores, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert np.isnan(rates(scores, np.full(6, NAN), 0.5)).all()
    point = operating_point(scores, labels, 0.5)
    assert (point.threshold, point.sensitivity, point.specificity) == (pytest.approx(0.8), 1.0, 0.5)
    strict = operating_point(scores, labels, 0.9)
    assert strict.threshold > 0.95 and (strict.sensitivity, strict.specificity) == (0.0, 1.0)
