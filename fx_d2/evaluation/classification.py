"""Image-level classification: AUROC, average precision, sensitivity, calibration. Unknown labels are ignored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fx_d2.evaluation.bootstrap import mean_over_classes
from fx_d2.evaluation.calibration import calibration_error, reliability
from fx_d2.evaluation.common import Drawn, TaskEvaluator, nan_mean
from fx_d2.evaluation.options import MetricOptions
from fx_d2.evaluation.ranking import RankedClass, operating_point, rates
from fx_d2.structures import DatasetSpec, FXError

logger = logging.getLogger(__name__)

Row = tuple[np.ndarray, np.ndarray]
"""Scores and labels of one image, float32 (C,) each."""


class ClassificationEvaluator(TaskEvaluator[Row]):
    """Metrics of every image-level class of a dataset; softmax datasets are evaluated one-vs-rest.

    Reads `sample["labels"]` (float32 (C,), NaN = unknown) of images with `annotated["cls"]`, and `output["cls"]`
    (float32 (C,) probabilities).
    """

    task, headline, undefined = "cls", "auroc", "needs positive and negative labels"

    def __init__(
        self,
        spec: DatasetSpec,
        options: MetricOptions | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        """See the class.

        Args:
            spec: dataset row (`DatasetSpec`): the classes, and the subsets over which means are taken.
            options: see `MetricOptions`.
            thresholds: class -> operating point, chosen on a validation split.
        """
        super().__init__(spec, options)
        self._thresholds = thresholds or {}

    def read(self, sample: dict[str, Any], output: dict[str, Any]) -> Row | None:
        """Scores and labels of an image, or None if no label is known.

        Raises:
            FXError: wrong shapes, scores that are not finite, or labels other than 0, 1 and NaN.
        """
        if sample.get("labels") is None:
            return None
        scores = output["cls"].detach().float().cpu().numpy()
        labels = torch.as_tensor(sample["labels"]).float().cpu().numpy()
        where = f"{self.spec.name}: {sample['file_name']}"
        expected = (len(self.spec.cls_classes),)
        if scores.shape != expected or labels.shape != expected:
            raise FXError(f"{where}: scores {scores.shape} and labels {labels.shape} for {expected[0]} cls_classes")
        if not np.isfinite(scores).all():
            raise FXError(f"{where}: the model's class probabilities are not finite: training has diverged")
        if not np.isin(labels[~np.isnan(labels)], (0.0, 1.0)).all():
            raise FXError(f"{where}: evaluation labels must be 0, 1 or NaN (unknown), not {labels.tolist()}")
        return None if np.isnan(labels).all() else (scores, labels)

    def metrics(self, rows: Mapping[int, Row]) -> dict[str, float]:
        """Metrics over a set of images.

        Returns:
            Means over the reporting classes for which they are defined: "auroc", "ap", "sensitivity", "ece", and with
            operating points "op_sensitivity" and "op_specificity"; each also per class ("auroc/<class>").
            "auroc_published" if the dataset row has published classes. "auroc_defined": number of reporting classes
            with a defined AUROC. "images": number of images.
        """
        names, (scores, labels) = self.spec.cls_classes, self._arrays(rows)
        found: dict[str, dict[str, float]] = {}
        one = np.ones((1, len(rows)), np.int64)
        for i, name in enumerate(names):
            values = scores[:, i], labels[:, i]
            area, precision = RankedClass(*values).metrics(one)
            row = {"auroc": float(area[0]), "ap": float(precision[0])}
            row["sensitivity"] = operating_point(*values, self.options.specificity).sensitivity
            row["ece"] = calibration_error(*values)
            if name in self._thresholds:
                row["op_sensitivity"], row["op_specificity"] = rates(*values, self._thresholds[name])
            for key, value in row.items():
                found.setdefault(key, {})[name] = value
        result = {key: nan_mean(row[c] for c in self.reporting if c in row) for key, row in found.items()}
        if self.spec.published:
            result["auroc_published"] = nan_mean(found["auroc"][c] for c in self.spec.published)
        result |= {f"{key}/{name}": value for key, row in found.items() for name, value in row.items()}
        defined = sum(not np.isnan(found["auroc"][name]) for name in self.reporting)
        return result | {"auroc_defined": float(defined), "images": float(len(rows))}

    def drawn(self, rows: Mapping[int, Row]) -> Drawn:
        """Means of "auroc", "ap" and "auroc_published"; the first two also per class."""
        scores, labels = self._arrays(rows)
        ranked = {c: RankedClass(scores[:, i], labels[:, i]) for i, c in enumerate(self.spec.cls_classes)}
        means = {"auroc": (0, self.reporting), "ap": (1, self.reporting)}
        means |= {"auroc_published": (0, self.spec.published)} if self.spec.published else {}

        def values(weights: np.ndarray) -> dict[str, np.ndarray]:
            pairs = {name: one.metrics(weights) for name, one in ranked.items()}
            found = {}
            for key, (k, names) in means.items():
                columns = [pairs[name][k] for name in names if ranked[name].defined]
                found[key] = mean_over_classes(columns, len(weights))
            for k, key in enumerate(("auroc", "ap")):
                found |= {f"{key}/{name}": pair[k] for name, pair in pairs.items()}
            return found

        return values

    def details(self, rows: Mapping[int, Row]) -> dict[str, Any]:
        """Reliability diagram and operating point of each class, the latter with its rates on these images."""
        scores, labels = self._arrays(rows)
        points, diagrams = {}, {}
        for i, name in enumerate(self.spec.cls_classes):
            point = operating_point(scores[:, i], labels[:, i], self.options.specificity)
            points[name] = point._asdict()
            diagrams[name] = reliability(scores[:, i], labels[:, i])
        return {"reliability": diagrams, "operating_points": points}

    def arrays(self, rows: Mapping[int, Row], images: Sequence[int]) -> dict[str, np.ndarray]:
        """Arrays "cls_scores" and "cls_labels", float32 (N, C) over all `images`; NaN where an image has no row."""
        unknown = np.full(len(self.spec.cls_classes), np.nan, np.float32)
        scores, labels = self._arrays({i: rows.get(i, (unknown, unknown)) for i in images})
        return {"cls_scores": scores, "cls_labels": labels}

    def restored(self, arrays: Mapping[str, np.ndarray]) -> dict[int, Row]:
        """Inverse of `arrays`."""
        rows = zip(arrays["image_id"].tolist(), arrays["cls_scores"], arrays["cls_labels"], strict=True)
        return {image: (scores, labels) for image, scores, labels in rows if not np.isnan(labels).all()}

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Metrics over all ranks, {"cls": `metrics`}, on the main process; None on the others."""
        result = super().evaluate()
        if result is not None:
            found = result["cls"]
            counts = int(found["auroc_defined"]), len(self.reporting), int(found["images"])
            logger.info("%s: mean AUROC over %d of %d classes, %d images", self.spec.name, *counts)
        return result

    @property
    def reporting(self) -> tuple[str, ...]:
        """Classes over which the headline metrics are averaged."""
        return self.spec.reporting or self.spec.cls_classes

    def _arrays(self, rows: Mapping[int, Row]) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(rows), len(self.spec.cls_classes))
        scores = np.array([row[0] for row in rows.values()], np.float32).reshape(shape)
        return scores, np.array([row[1] for row in rows.values()], np.float32).reshape(shape)
