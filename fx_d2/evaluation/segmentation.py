"""Dice of masks, per image and class, in original pixels."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from pycocotools import mask as mask_utils

from fx_d2.evaluation.common import gather_by_image, log_undefined, nan_mean
from fx_d2.structures import DatasetSpec, FXError

logger = logging.getLogger(__name__)


def dice(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Dice of two bool (H, W) masks over the valid pixels; 1 when both are empty, NaN when no pixel is valid."""
    if valid is not None:
        if not valid.any():
            return float("nan")
        prediction, truth = prediction & valid, truth & valid
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth))
    return 2.0 * int(np.count_nonzero(prediction & truth)) / total if total else 1.0


class SegmentationEvaluator(DatasetEvaluator):
    """Dice of a dataset's masks, streaming: an image leaves two numbers a class behind, no mask is kept.

    Reads `sample["masks"]` (compressed COCO RLE per class, None = unknown) and `sample["ignore_mask"]` (pixels left
    out) of images with `annotated["seg"]`, and `output["masks"]` (bool (C, height, width), original pixels).
    """

    def __init__(self, spec: DatasetSpec) -> None:
        """The row of the table of datasets gives the mask classes."""
        self.spec = spec
        self._rows: dict[int, np.ndarray] = {}

    def reset(self) -> None:
        """Forget all images."""
        self._rows = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Score the masks of a batch; raises FXError when a mask does not have the size of its image."""
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = int(sample["image_id"])
            if image_id in self._rows or not sample["annotated"]["seg"] or sample.get("masks") is None:
                continue
            self._rows[image_id] = self._score(sample, output["masks"])

    def _score(self, sample: dict[str, Any], predicted: torch.Tensor) -> np.ndarray:
        """Rows (2, C) float32: Dice, and 1 where the truth is not empty; NaN = unknown."""
        size = (int(sample["height"]), int(sample["width"]))
        expected = (len(self.spec.seg_classes), *size)
        if tuple(predicted.shape) != expected or len(sample["masks"]) != expected[0]:
            raise FXError(
                f"{self.spec.name}: {sample['file_name']}: masks {tuple(predicted.shape)} and "
                f"{len(sample['masks'])} truths where (classes, height, width) is {expected}"
            )
        ignored = sample.get("ignore_mask")
        valid = None if ignored is None else ~_decode(ignored, size, sample["file_name"])
        row = np.full((2, expected[0]), np.nan, np.float32)
        for i, encoded in enumerate(sample["masks"]):
            if encoded is None:
                continue
            truth = _decode(encoded, size, sample["file_name"])
            row[0, i] = dice(predicted[i].detach().cpu().numpy().astype(bool), truth, valid)
            if not np.isnan(row[0, i]):
                row[1, i] = float((truth if valid is None else truth & valid).any())
        return row

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Metrics over all processes, on the main process; None on the others.

        Returns:
            {"seg": {"dice": the paper's convention (mean over images, both empty = 1, then over classes),
            "dice_positives": the same over images whose truth is not empty, "dice/<class>", "images"}};
            NaN = undefined.
        """
        rows = gather_by_image(self._rows)
        if rows is None:
            return None
        names = self.spec.seg_classes
        table = np.array(list(rows.values()), np.float64).reshape(-1, 2, len(names))
        per_class = {name: nan_mean(table[:, 0, i]) for i, name in enumerate(names)}
        positives = [nan_mean(table[table[:, 1, i] == 1, 0, i]) for i in range(len(names))]
        undefined = [name for name, value in per_class.items() if np.isnan(value)]
        log_undefined(logger, self.spec.name, "Dice", undefined, "no annotated image in the split")
        result = {"dice": nan_mean(per_class.values()), "dice_positives": nan_mean(positives)}
        result |= {f"dice/{name}": value for name, value in per_class.items()}
        return {"seg": result | {"images": float(len(rows))}}


def _decode(encoded: dict[str, Any], size: tuple[int, int], file_name: str) -> np.ndarray:
    """The bool (H, W) mask of a compressed RLE; raises FXError when it does not fit the image."""
    if tuple(encoded["size"]) != size:
        raise FXError(
            f"{file_name}: mask of {tuple(encoded['size'])} pixels on an image of {size} (height, width): "
            "prepare the dataset again"
        )
    return mask_utils.decode(encoded).astype(bool)
