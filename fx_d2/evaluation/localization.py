"""Average precision of boxes, computed by pycocotools, from IoU 0.40 on."""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fx_d2.evaluation.common import gather_by_image, log_undefined, nan_mean
from fx_d2.structures import DatasetSpec, FXError

logger = logging.getLogger(__name__)

IOU_THRESHOLDS = np.linspace(0.40, 0.95, 12)
"""The paper's headline is AP at the first of these; COCO's AP is the mean from 0.50 (index 2) on."""

MAX_DETECTIONS = 100


@dataclass(frozen=True)
class _ImageBoxes:
    """Boxes of one image, xywh in original pixels, with 0-based classes."""

    height: int
    width: int
    truth: list[tuple[list[float], int, int]]  # box, class, iscrowd
    boxes: np.ndarray  # (N, 4)
    scores: np.ndarray  # (N,)
    classes: np.ndarray  # (N,)


class LocalizationEvaluator(DatasetEvaluator):
    """COCO average precision of a dataset's boxes, in original pixels, at most 100 boxes an image.

    Reads `sample["annotations"]` of images with `annotated["loc"]`, and `output["instances"]`. An annotated image
    without boxes is a true negative: what the model finds there counts against it. Nothing is written to disk.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        """The row of the table of datasets gives the box classes."""
        self.spec = spec
        self._rows: dict[int, _ImageBoxes] = {}

    def reset(self) -> None:
        """Forget all images."""
        self._rows = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep truth and boxes of a batch; raises FXError for boxes or scores that are not finite."""
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = int(sample["image_id"])
            if image_id in self._rows or not sample["annotated"]["loc"]:
                continue
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.detach().double().numpy()
            scores = instances.scores.detach().double().numpy()
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise FXError(
                    f"{self.spec.name}: {sample['file_name']}: the model's boxes or scores are not finite: "
                    "training has diverged"
                )
            self._rows[image_id] = _ImageBoxes(
                height=int(sample["height"]),
                width=int(sample["width"]),
                truth=[_truth_box(annotation) for annotation in sample.get("annotations") or []],
                boxes=BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).reshape(-1, 4),
                scores=scores,
                classes=instances.pred_classes.numpy(),
            )

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Metrics over all processes, on the main process; None on the others.

        Returns:
            {"loc": {"AP40", "AP50", "AP75", "AP" (mean of IoU .50:.95), "AP40/<class>", "AR100" (recall of
            IoU .50:.95), "images"}}: means over the classes that have a truth box; NaN = undefined.
        """
        rows = gather_by_image(self._rows)
        if rows is None:
            return None
        precision, recall = _coco_curves(rows, len(self.spec.loc_classes))
        names = self.spec.loc_classes
        undefined = [name for name, value in zip(names, precision[0], strict=True) if np.isnan(value)]
        log_undefined(logger, self.spec.name, "AP", undefined, "no truth box in the split")
        result = {
            "AP40": nan_mean(precision[0]),
            "AP50": nan_mean(precision[2]),
            "AP75": nan_mean(precision[7]),
            "AP": nan_mean(precision[2:].ravel()),
            "AR100": nan_mean(recall[2:].ravel()),
        }
        result |= {f"AP40/{name}": float(value) for name, value in zip(names, precision[0], strict=True)}
        return {"loc": result | {"images": float(len(rows))}}


def _truth_box(annotation: dict[str, Any]) -> tuple[list[float], int, int]:
    box = BoxMode.convert(list(annotation["bbox"]), BoxMode(annotation["bbox_mode"]), BoxMode.XYWH_ABS)
    return [float(v) for v in box], int(annotation["category_id"]), int(annotation.get("iscrowd", 0))


def _coco_curves(rows: dict[int, _ImageBoxes], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision (mean over recall points) and recall, both (12 IoU thresholds, classes); NaN without a truth box."""
    if not rows:
        nothing = np.full((len(IOU_THRESHOLDS), num_classes), np.nan)
        return nothing, nothing
    images = [{"id": i, "height": row.height, "width": row.width} for i, row in rows.items()]
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image_id, row in rows.items():
        for box, category, crowd in row.truth:
            truth.append(_coco_box(len(truth) + 1, image_id, category, box) | {"iscrowd": crowd})
        for box, score, category in zip(row.boxes.tolist(), row.scores, row.classes, strict=True):
            found.append(_coco_box(len(found) + 1, image_id, int(category), box) | {"score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco_table(images, truth, num_classes), _coco_table(images, found, num_classes), iouType="bbox"
        )
        evaluation.params.iouThrs = IOU_THRESHOLDS
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    # pycocotools marks classes without truth by -1.
    precision = evaluation.eval["precision"][:, :, :, 0, 0].mean(axis=1)
    recall = evaluation.eval["recall"][:, :, 0, 0]
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


def _coco_box(box_id: int, image_id: int, category: int, box: list[float]) -> dict[str, Any]:
    # Ids start at 1: pycocotools takes a match with id 0 for no match.
    return {
        "id": box_id,
        "image_id": image_id,
        "category_id": category + 1,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }


def _coco_table(images: list[dict[str, Any]], boxes: list[dict[str, Any]], num_classes: int) -> COCO:
    table = COCO()
    table.dataset = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": i + 1, "name": str(i)} for i in range(num_classes)],
    }
    table.createIndex()
    return table
