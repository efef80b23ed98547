from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from fx_d2.evaluation import ClassificationEvaluator, MetricOptions
from fx_d2.structures import DatasetSpec, FXError

NAN = float("nan")


def spec(**changes: Any) -> DatasetSpec:
    return DatasetSpec(**({"name": "toy", "title": "Toy", "cls_classes": ("a", "b")} | changes))


def run(row: DatasetSpec, scores: np.ndarray, labels: np.ndarray, batch: int = 3) -> dict[str, float]:
    evaluator = ClassificationEvaluator(row)
    evaluator.reset()
    samples = [sample(i, y) for i, y in enumerate(labels)]
    outputs = [{"cls": torch.tensor(s, dtype=torch.float32)} for s in scores]
    for start in range(0, len(samples), batch):
        evaluator.process(samples[start : start + batch], outputs[start : start + batch])
    return evaluator.evaluate()["cls"]


def sample(image_id: int, labels: Any) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.png",
        "annotated": {"cls": labels is not None, "loc": False, "seg": False},
        "labels": None if labels is None else torch.tensor(np.asarray(labels), dtype=torch.float32),
    }


def test_every_class_has_its_own_unknown_images() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 2)).astype(float)
    labels[:10, 0] = NAN
    labels[30:, 1] = NAN
    scores = rng.random((40, 2)).astype(np.float32)
    result = run(spec(), scores, labels)
    assert result["auroc/a"] == pytest.approx(roc_auc_score(labels[10:, 0], scores[10:, 0]))
    assert result["auroc/b"] == pytest.approx(roc_auc_score(labels[:30, 1], scores[:30, 1]))
    assert result["auroc"] == pytest.approx((result["auroc/a"] + result["auroc/b"]) / 2)
    assert result["auroc_defined"] == 2 and result["images"] == 40


def test_undefined_class_is_named_and_left_out_of_the_mean(caplog: pytest.LogCaptureFixture) -> None:
    scores = np.array([[0.2, 0.5], [0.9, 0.1]])
    result = run(spec(), scores, np.array([[0.0, 1.0], [1.0, 1.0]]))
    assert result["auroc"] == 1.0 and np.isnan(result["auroc/b"]) and result["auroc_defined"] == 1
    assert any("undefined for b" in message and "toy" in message for message in caplog.messages)


def test_the_headline_is_the_mean_of_the_reporting_classes() -> None:
    scores = np.array([[0.2, 0.2], [0.9, 0.1]])
    labels = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert run(spec(reporting=("b",)), scores, labels)["auroc"] == 0.0
    assert run(spec(), scores, labels)["auroc"] == 0.5


def test_softmax_dataset_is_scored_one_class_against_the_rest() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 60)
    scores = rng.dirichlet(np.ones(3), 60)
    result = run(spec(cls_classes=("x", "y", "z"), cls_kind="softmax"), scores, np.eye(3)[truth])
    expected = roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    assert result["auroc"] == pytest.approx(expected, abs=1e-6)


def test_an_image_counts_once_and_images_without_labels_do_not_count() -> None:
    evaluator = ClassificationEvaluator(spec(cls_classes=("a",)))
    samples = [sample(1, [1.0]), sample(2, [0.0]), sample(1, [1.0]), sample(3, None)]
    outputs = [{"cls": torch.tensor([p])} for p in (0.9, 0.1, 0.0, 0.5)]
    evaluator.process(samples, outputs)
    result = evaluator.evaluate()["cls"]
    assert (result["auroc"], result["auroc/a"], result["auroc_defined"], result["images"]) == (1.0, 1.0, 1.0, 2.0)
    evaluator.process([sample(4, [NAN])], [{"cls": torch.tensor([0.5])}])
    assert evaluator.evaluate()["cls"]["images"] == 2
    evaluator.reset()
    assert evaluator.evaluate()["cls"]["images"] == 0


def test_wrong_scores_and_labels_are_refused_with_the_file_named() -> None:
    evaluator = ClassificationEvaluator(spec())
    with pytest.raises(FXError, match=r"toy: 7\.png: .*not finite"):
        evaluator.process([sample(7, [1.0, 0.0])], [{"cls": torch.tensor([0.1, NAN])}])
    with pytest.raises(FXError, match="for 2 cls_classes"):
        evaluator.process([sample(7, [1.0, 0.0])], [{"cls": torch.tensor([0.1])}])
    with pytest.raises(FXError, match="0, 1 or NaN"):
        evaluator.process([sample(7, [0.7, 0.0])], [{"cls": torch.tensor([0.1, 0.2])}])


def draw(images: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (images, 2)).astype(float)
    labels[:5, 0] = NAN
    return (rng.random((images, 2)) + 0.4 * np.nan_to_num(labels)).clip(0, 1).astype(np.float32), labels


def test_means_are_over_the_reporting_classes_and_the_published_ones_are_a_second_column() -> None:
    scores, labels = draw()
    result = run(spec(reporting=("a",), published=("b",)), scores, labels)
    known = ~np.isnan(labels[:, 0])
    expected = average_precision_score(labels[known, 0], scores[known, 0])
    assert result["ap"] == result["ap/a"] == pytest.approx(expected, abs=1e-12)
    assert result["auroc"] == result["auroc/a"] and result["auroc_published"] == result["auroc/b"]
    assert "auroc_published" not in run(spec(), scores, labels)


def test_operating_points_come_from_outside_and_only_for_their_classes() -> None:
    scores, labels = draw()
    evaluator = ClassificationEvaluator(spec(), thresholds={"b": 0.5})
    evaluator.process([sample(i, y) for i, y in enumerate(labels)], [{"cls": torch.tensor(s)} for s in scores])
    result = evaluator.evaluate()["cls"]
    positive = labels[:, 1] == 1
    assert result["op_sensitivity/b"] == result["op_sensitivity"] == (scores[positive, 1] >= 0.5).mean()
    assert result["op_specificity/b"] == (scores[~positive, 1] < 0.5).mean()
    assert "op_sensitivity/a" not in result and "op_sensitivity" not in run(spec(), scores, labels)


def test_intervals_hold_the_values_and_details_name_each_class() -> None:
    scores, labels = draw()
    labels[:, 1] = 1.0
    evaluator = ClassificationEvaluator(spec(), MetricOptions(bootstrap=200))
    evaluator.process([sample(i, y) for i, y in enumerate(labels)], [{"cls": torch.tensor(s)} for s in scores])
    result = evaluator.evaluate()["cls"]
    found = evaluator.intervals(evaluator.rows, [str(i // 2) for i in evaluator.rows])
    for key in ("auroc", "ap", "auroc/a", "ap/a"):
        assert found[key][0] < result[key] < found[key][1], key
    # The undefined class is in no mean, of the draws neither.
    assert found["auroc"] == found["auroc/a"] and np.isnan(found["auroc/b"]).all()
    details = evaluator.details(evaluator.rows)
    assert set(details["reliability"]) == {"a", "b"} and np.isnan(details["operating_points"]["b"]["threshold"])
    assert details["operating_points"]["a"]["specificity"] >= 0.9


def test_arrays_cover_every_image_of_the_split() -> None:
    evaluator = ClassificationEvaluator(spec())
    evaluator.process([sample(4, [1.0, NAN])], [{"cls": torch.tensor([0.25, 0.5])}])
    evaluator.evaluate()
    arrays = evaluator.arrays(evaluator.rows, [2, 4])
    assert arrays["cls_scores"].dtype == np.float32 and np.isnan(arrays["cls_scores"][0]).all()
    assert arrays["cls_scores"][1].tolist() == [0.25, 0.5] and arrays["cls_labels"][1, 0] == 1


QUICK = settings(deadline=2000, max_examples=40, derandomize=True)


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1, width=32)), max_size=12),
    st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=6, max_size=6),
)
def test_whatever_the_images_an_id_counts_once_and_the_first_time(
    rows: list[tuple[int, float]], labels: list[float]
) -> None:
    def evaluate(kept: list[tuple[int, float]]) -> dict[str, float]:
        evaluator = ClassificationEvaluator(spec(cls_classes=("a",)))
        for image_id, score in kept:
            evaluator.process([sample(image_id, [labels[image_id]])], [{"cls": torch.tensor([score])}])
        return evaluator.evaluate()["cls"]

    first = dict(reversed(rows))
    known = [labels[image_id] for image_id in first if not np.isnan(labels[image_id])]
    whole, once = evaluate(rows), evaluate(list(first.items()))
    assert whole == pytest.approx(once, abs=1e-12, nan_ok=True) and whole["images"] == len(known)
    assert np.isnan(whole["auroc"]) == (len(set(known)) < 2)


@QUICK
@given(st.integers(0, 5), st.integers(0, 1), st.sampled_from([NAN, float("inf"), -float("inf")]))
def test_a_score_that_is_not_finite_is_an_error_wherever_it_stands(image: int, column: int, value: float) -> None:
    scores = np.full((6, 2), 0.5)
    scores[image, column] = value
    with pytest.raises(FXError, match=rf"toy: {image}\.png: .*not finite"):
        run(spec(), scores, np.ones((6, 2)))
