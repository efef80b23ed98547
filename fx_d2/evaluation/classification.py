"""Area under the ROC curve per class, unknown labels left out."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from scipy.stats import rankdata

from fx_d2.evaluation.common import gather_by_image, log_undefined, nan_mean
from fx_d2.structures import DatasetSpec, FXError

logger = logging.getLogger(__name__)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUROC as the Mann-Whitney statistic; tied scores count one half.

    Args:
        scores: (N,) float, larger = more likely present.
        labels: (N,) float, 1 present, 0 absent, NaN unknown (left out).

    Returns:
        A value in [0, 1], or NaN when the known labels do not hold both values.
    """
    known = ~np.isnan(labels)
    positive = labels[known] == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    ranks = rankdata(scores[known].astype(np.float64))
    wins = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * num_negative))


class ClassificationEvaluator(DatasetEvaluator):
    """AUROC of every image-level class of a dataset; for softmax datasets the same, one class against the rest.

    Reads `sample["labels"]` (float32 (C,), NaN = unknown) of images with `annotated["cls"]`, and `output["cls"]`
    (float32 (C,) probabilities).
    """

    def __init__(self, spec: DatasetSpec) -> None:
        """The row of the table of datasets gives the classes and those whose mean is the headline."""
        self.spec = spec
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def reset(self) -> None:
        """Forget all images."""
        self._rows = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep scores and labels of a batch; raises FXError for scores that are not finite and strange labels."""
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = int(sample["image_id"])
            if image_id in self._rows or not sample["annotated"]["cls"] or sample.get("labels") is None:
                continue
            scores = output["cls"].detach().float().cpu().numpy()
            labels = torch.as_tensor(sample["labels"]).float().cpu().numpy()
            self._check(sample, scores, labels)
            self._rows[image_id] = (scores, labels)

    def _check(self, sample: dict[str, Any], scores: np.ndarray, labels: np.ndarray) -> None:
        where = f"{self.spec.name}: {sample['file_name']}"
        expected = (len(self.spec.cls_classes),)
        if scores.shape != expected or labels.shape != expected:
            raise FXError(f"{where}: {scores.shape} scores and {labels.shape} labels for {expected[0]} cls_classes")
        if not np.isfinite(scores).all():
            raise FXError(f"{where}: the model's class probabilities are not finite: training has diverged")
        if not np.isin(labels[~np.isnan(labels)], (0.0, 1.0)).all():
            raise FXError(f"{where}: labels in evaluation must be 0, 1 or unknown, not {labels.tolist()}")

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Metrics over all processes, on the main process; None on the others.

        Returns:
            {"cls": {"auroc": mean over the defined reporting classes, "auroc/<class>": ..., "auroc_defined":
            number of reporting classes that are defined, "images": number of images}}; NaN = undefined.
        """
        rows = gather_by_image(self._rows)
        if rows is None:
            return None
        names = self.spec.cls_classes
        scores = np.array([row[0] for row in rows.values()]).reshape(-1, len(names))
        labels = np.array([row[1] for row in rows.values()]).reshape(-1, len(names))
        per_class = {name: auroc(scores[:, i], labels[:, i]) for i, name in enumerate(names)}
        reporting = self.spec.reporting or names
        undefined = [name for name in names if np.isnan(per_class[name])]
        defined = sum(name not in undefined for name in reporting)
        log_undefined(logger, self.spec.name, "AUROC", undefined, "labels of both values are needed")
        logger.info("%s: AUROC over %d of %d classes, %d images", self.spec.name, defined, len(reporting), len(rows))
        result = {"auroc": nan_mean(per_class[name] for name in reporting)}
        result |= {f"auroc/{name}": value for name, value in per_class.items()}
        return {"cls": result | {"auroc_defined": float(defined), "images": float(len(rows))}}
