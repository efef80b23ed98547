from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fx_d2.evaluation import ClassificationEvaluator, auroc
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


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 7, 10_000])
def test_auroc_agrees_with_scikit_learn_also_with_ties(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 200).astype(float)
    scores = (rng.integers(0, levels, 200) / levels + 0.2 * labels).astype(np.float32)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auroc_leaves_unknown_labels_out() -> None:
    labels = np.array([1, 0, NAN, 1, NAN, 0])
    scores = np.array([0.9, 0.95, 0.0, 0.8, 1.0, 0.1])
    assert auroc(scores, labels) == pytest.approx(0.5)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, NAN], [NAN, NAN, NAN], []])
def test_auroc_of_one_label_value_is_undefined(labels: list[float]) -> None:
    assert np.isnan(auroc(np.linspace(0, 1, len(labels)), np.array(labels, dtype=float)))


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
    assert evaluator.evaluate()["cls"] == {"auroc": 1.0, "auroc/a": 1.0, "auroc_defined": 1.0, "images": 2.0}
    evaluator.reset()
    assert evaluator.evaluate()["cls"]["images"] == 0


def test_wrong_scores_and_labels_are_refused_with_the_file_named() -> None:
    evaluator = ClassificationEvaluator(spec())
    with pytest.raises(FXError, match=r"toy: 7\.png: .*not finite"):
        evaluator.process([sample(7, [1.0, 0.0])], [{"cls": torch.tensor([0.1, NAN])}])
    with pytest.raises(FXError, match="for 2 cls_classes"):
        evaluator.process([sample(7, [1.0, 0.0])], [{"cls": torch.tensor([0.1])}])
    with pytest.raises(FXError, match="0, 1 or unknown"):
        evaluator.process([sample(7, [0.7, 0.0])], [{"cls": torch.tensor([0.1, 0.2])}])
