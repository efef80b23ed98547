"""Box detection: COCO average precision from IoU 0.40 up, recall and FROC, in original pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from fx_d2.evaluation.bootstrap import mean_over_classes
from fx_d2.evaluation.common import Drawn, TaskEvaluator, nan_mean
from fx_d2.evaluation.matching import (
    FALSE_POSITIVES,
    HIT,
    average_precisions,
    froc,
    match_boxes,
    rank_in_class,
    sensitivities,
)
from fx_d2.structures import FXError

IOU_THRESHOLDS = np.linspace(0.40, 0.95, 12)
"""The paper reports AP at the first of these; COCO AP is the mean from 0.50 (index 2) up."""

MAX_DETECTIONS = (1, 10, 100)
"""Boxes kept per class and image: AR<n> for each of them; AP uses the last."""

_CURVE_POINTS = 200


@dataclass(frozen=True)
class BoxRow:
    """Matched boxes of one image.

    Attributes:
        scores: (D,) float32, highest first.
        classes: (D,) int16, 0-based.
        rank: (D,) int16, 0 = highest-scoring box of its class.
        hits: (D, 13) int8 per threshold: IOU_THRESHOLDS, then TEST.FROC_IOU; see `matching.Matches`.
        truth: (C,) int32, ground-truth boxes per class.
    """

    scores: np.ndarray
    classes: np.ndarray
    rank: np.ndarray
    hits: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class _Boxes:
    """Boxes of all images, highest score first, ties in the order of the images.

    `image` is the index of the row that a box belongs to; `truth` has one entry per row.
    """

    image: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rank: np.ndarray
    hits: np.ndarray
    truth: np.ndarray  # (N, C)


class LocalizationEvaluator(TaskEvaluator[BoxRow]):
    """Average precision, recall and FROC of a dataset's boxes, with at most 100 boxes per class and image.

    Reads `sample["annotations"]` of images with `annotated["loc"]`, and `output["instances"]`. An annotated image
    without boxes is a negative: every detection on it is a false positive. Boxes are matched batch by batch, so no
    coordinates are kept.
    """

    task, headline, undefined = "loc", "AP40", "no ground-truth box"

    def read(self, sample: dict[str, Any], output: dict[str, Any]) -> BoxRow:
        """Match the boxes of one image; raises FXError for boxes or scores that are not finite."""
        instances = output["instances"]
        boxes = instances.pred_boxes.tensor.detach().cpu().double().numpy().reshape(-1, 4)
        scores = instances.scores.detach().cpu().float().numpy()
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise FXError(
                f"{self.spec.name}: {sample['file_name']}: the model's boxes or scores are not finite: "
                "training has diverged"
            )
        truth = sample.get("annotations") or []
        labels = np.array([row["category_id"] for row in truth], np.int64)
        crowd = np.array([bool(row.get("iscrowd", 0)) for row in truth], bool)
        classes = instances.pred_classes.cpu().numpy()
        found = match_boxes(
            BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS),
            scores,
            classes,
            _as_xywh(truth),
            labels,
            (*IOU_THRESHOLDS, self.options.froc_iou),
            MAX_DETECTIONS[-1],
            crowd,
        )
        return BoxRow(
            scores=scores[found.kept],
            classes=classes[found.kept].astype(np.int16),
            rank=found.rank.astype(np.int16),
            hits=found.hits,
            truth=np.bincount(labels[~crowd], minlength=len(self.spec.loc_classes)).astype(np.int32),
        )

    def metrics(self, rows: Mapping[int, BoxRow]) -> dict[str, float]:
        """Metrics over a set of images.

        Returns:
            Means over the classes that have a ground-truth box: "AP40", "AP50", "AP75", "AP" (mean over IoU .50:.95),
            "AR1", "AR10", "AR100" (recall, mean over IoU .50:.95, with that many boxes per class and image), "froc"
            (mean sensitivity at FALSE_POSITIVES false positives per image) and its seven terms, "froc@0.125" to
            "froc@8". "AP40", "AP50", "AP", "AR100" and "froc" also per class ("AP40/<class>"). "loc_defined": number
            of classes with a ground-truth box. "images": number of images.
        """
        boxes = self._stack(rows)
        columns = [self._class_metrics(boxes, i) for i in range(len(self.spec.loc_classes))]
        result = {key: nan_mean(column[key] for column in columns) for key in columns[0]}
        per_class = ("AP40", "AP50", "AP", "AR100", "froc")
        for key in per_class:
            pairs = zip(self.spec.loc_classes, columns, strict=True)
            result |= {f"{key}/{name}": column[key] for name, column in pairs}
        defined = sum(not np.isnan(column["AP40"]) for column in columns)
        return result | {"loc_defined": float(defined), "images": float(len(rows))}

    def _class_metrics(self, boxes: _Boxes, index: int) -> dict[str, float]:
        """Metrics of one class; all NaN without a ground-truth box."""
        keys = ["AP40", "AP50", "AP75", "AP", *(f"AR{k}" for k in MAX_DETECTIONS), "froc"]
        keys += [f"froc@{rate:g}" for rate in FALSE_POSITIVES]
        positives = int(boxes.truth[:, index].sum())
        if not positives:
            return dict.fromkeys(keys, float("nan"))
        mine = boxes.classes == index
        scores, hits, rank = boxes.scores[mine], boxes.hits[mine], boxes.rank[mine]
        once = boxes.image[mine], np.ones((1, len(boxes.truth)), np.int64), np.array([positives])
        curve = [float(average_precisions(hits[:, t], *once)[0]) for t in range(len(IOU_THRESHOLDS))]
        recalls = [float((hits[rank < k, 2:-1] == HIT).sum(axis=0).mean() / positives) for k in MAX_DETECTIONS]
        rates = sensitivities(*froc(scores, hits[:, -1], positives, len(boxes.truth)))
        values = [curve[0], curve[2], curve[7], float(np.mean(curve[2:])), *recalls, float(rates.mean()), *rates]
        return {key: float(value) for key, value in zip(keys, values, strict=True)}

    def drawn(self, rows: Mapping[int, BoxRow]) -> Drawn:
        """Mean and per-class "AP40"."""
        boxes = self._stack(rows)
        defined = boxes.truth.sum(axis=0) > 0

        def values(weights: np.ndarray) -> dict[str, np.ndarray]:
            positives = weights @ boxes.truth
            columns = []
            for i in range(len(self.spec.loc_classes)):
                mine = boxes.classes == i
                columns.append(average_precisions(boxes.hits[mine, 0], boxes.image[mine], weights, positives[:, i]))
            mean = mean_over_classes([columns[i] for i in np.flatnonzero(defined)], len(weights))
            return {"AP40": mean} | {f"AP40/{c}": v for c, v in zip(self.spec.loc_classes, columns, strict=True)}

        return values

    def details(self, rows: Mapping[int, BoxRow]) -> dict[str, Any]:
        """FROC curve {"false_positives" per image, "sensitivity"} of each class with a ground-truth box, subsampled."""
        boxes, curves = self._stack(rows), {}
        for i, name in enumerate(self.spec.loc_classes):
            positives, mine = int(boxes.truth[:, i].sum()), boxes.classes == i
            if positives:
                alarms, sensitivity = froc(boxes.scores[mine], boxes.hits[mine, -1], positives, len(boxes.truth))
                shown = np.unique(np.linspace(0, len(alarms) - 1, _CURVE_POINTS).astype(int))
                curves[name] = {
                    "false_positives": alarms[shown].tolist(),
                    "sensitivity": sensitivity[shown].tolist(),
                }
        return {"froc": curves}

    def arrays(self, rows: Mapping[int, BoxRow], images: Sequence[int]) -> dict[str, np.ndarray]:
        """Arrays "loc_truth", int32 (N, C), ground-truth boxes of each image, -1 = not annotated; and for every box
        that counts "loc_image" (index of its image), "loc_class", "loc_score", "loc_hits" (D, 13) as in `BoxRow`."""
        index = {image: i for i, image in enumerate(images)}
        truth = np.full((len(images), len(self.spec.loc_classes)), -1, np.int32)
        boxes = self._stack(rows)
        indices = np.array([index[image] for image in rows], np.int32)
        truth[indices] = boxes.truth
        return {
            "loc_truth": truth,
            "loc_image": indices[boxes.image] if len(rows) else np.zeros(0, np.int32),
            "loc_class": boxes.classes,
            "loc_score": boxes.scores,
            "loc_hits": boxes.hits,
        }

    def restored(self, arrays: Mapping[str, np.ndarray]) -> dict[int, BoxRow]:
        """Inverse of `arrays`."""
        order = np.argsort(arrays["loc_image"], kind="stable")  # highest score first within each image
        ends = np.searchsorted(arrays["loc_image"][order], np.arange(len(arrays["image_id"]) + 1))
        rows = {}
        for i, (image, truth) in enumerate(zip(arrays["image_id"].tolist(), arrays["loc_truth"], strict=True)):
            if (truth >= 0).all():
                mine = order[ends[i] : ends[i + 1]]
                scores, classes, hits = (arrays[f"loc_{key}"][mine] for key in ("score", "class", "hits"))
                rank = rank_in_class(classes).astype(np.int16)
                rows[image] = BoxRow(scores=scores, classes=classes, rank=rank, hits=hits, truth=truth)
        return rows

    def _stack(self, rows: Mapping[int, BoxRow]) -> _Boxes:
        parts = list(rows.values())
        counts = [len(row.scores) for row in parts]

        def join(key: str, dtype: Any, *shape: int) -> np.ndarray:
            return np.concatenate([getattr(row, key) for row in parts] or [np.zeros((0, *shape))]).astype(dtype)

        scores = join("scores", np.float32)
        order = np.argsort(-scores, kind="stable")
        truth = np.array([row.truth for row in parts], np.int32).reshape(-1, len(self.spec.loc_classes))
        return _Boxes(
            image=np.repeat(np.arange(len(parts)), counts)[order],
            scores=scores[order],
            classes=join("classes", np.int16)[order],
            rank=join("rank", np.int16)[order],
            hits=join("hits", np.int8, len(IOU_THRESHOLDS) + 1)[order],
            truth=truth,
        )


def _as_xywh(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """Boxes of annotations as (G, 4) float64 xywh."""
    boxes = np.array([row["bbox"] for row in annotations], np.float64).reshape(-1, 4)
    modes = np.array([row["bbox_mode"] for row in annotations])
    for mode in set(modes.tolist()):
        boxes[modes == mode] = BoxMode.convert(boxes[modes == mode], BoxMode(mode), BoxMode.XYWH_ABS)
    return boxes
