"""Segmentation: Dice and IoU per image and class, in original pixels and at the network's resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from scipy import ndimage

from fx_d2.data.augmentation import ResizeTransform
from fx_d2.evaluation.bootstrap import mean_over_classes, weighted_means
from fx_d2.evaluation.common import Drawn, TaskEvaluator, nan_mean
from fx_d2.structures import FXError

FIELDS = ("dice", "iou", "positive", "network_dice", "network_iou", "network_positive", "hd95")
"""Values kept per image and class. `positive` is 1 if the ground truth is not empty; `network_*` are at the network's
resolution; `hd95` is in original pixels, only with TEST.HAUSDORFF."""

_OVERLAPS = ("dice", "iou", "network_dice", "network_iou")


def overlap(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> tuple[float, float, float]:
    """Dice, IoU, and 1.0 if the ground truth is not empty, of two bool (H, W) masks over the valid pixels.

    Dice and IoU are 1 if both masks are empty; all three are NaN if no pixel is valid.
    """
    if valid is not None:
        if not valid.any():
            return (float("nan"),) * 3
        prediction, truth = prediction & valid, truth & valid
    present = int(np.count_nonzero(truth))
    total = int(np.count_nonzero(prediction)) + present
    shared = int(np.count_nonzero(prediction & truth))
    if not total:
        return 1.0, 1.0, 0.0
    return 2.0 * shared / total, shared / (total - shared), float(present > 0)


def dice(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Dice of two bool (H, W) masks over the valid pixels; 1 if both are empty, NaN if no pixel is valid."""
    return overlap(prediction, truth, valid)[0]


def hausdorff95(prediction: np.ndarray, truth: np.ndarray) -> float:
    """95 % Hausdorff distance of two bool (H, W) masks in pixels; NaN if either is empty.

    The larger of the two 95th percentiles of the distances from the outline pixels of one mask to the nearest outline
    pixel of the other. A mask pixel is on the outline if one of its four neighbours is outside the mask or the image.
    """
    if not prediction.any() or not truth.any():
        return float("nan")
    outlines = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    # Cropping to the bounding box of both outlines changes nothing, and distance maps cost time by area.
    rows, columns = np.nonzero(outlines[0] | outlines[1])
    window = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    a, b = (outline[window] for outline in outlines)
    far = (np.percentile(ndimage.distance_transform_edt(~y)[x], 95) for x, y in ((a, b), (b, a)))
    return float(max(far))


class SegmentationEvaluator(TaskEvaluator[np.ndarray]):
    """Dice and IoU of a dataset's masks, streaming: only a few values per image and class are kept, no masks.

    Reads `sample["masks"]` (compressed COCO RLE per class, None = unknown) and `sample["ignore_mask"]` (pixels to
    ignore) of images with `annotated["seg"]`, `output["masks"]` (bool (C, height, width), original pixels) and
    `output["seg"]` (float (C, H, W), probabilities at the network's resolution, thresholded at > 0.5). A row is float64
    (FIELDS, C), NaN = unknown. At the network's resolution the ground truth is resized like the masks in training, by
    nearest neighbour at pixel centres.
    """

    task, headline, undefined = "seg", "dice", "no annotated image"

    def read(self, sample: dict[str, Any], output: dict[str, Any]) -> np.ndarray | None:
        """Score the masks of an image, or None if none is known.

        Raises:
            FXError: wrong shapes, ground truth of another size than the image, or maps that are not finite.
        """
        if sample.get("masks") is None:
            return None
        size, predicted, maps = (int(sample["height"]), int(sample["width"])), output["masks"], output["seg"]
        expected = (len(self.spec.seg_classes), *size)
        if tuple(predicted.shape) != expected or len(maps) != expected[0] or len(sample["masks"]) != expected[0]:
            raise FXError(
                f"{self.spec.name}: {sample['file_name']}: predicted masks {tuple(predicted.shape)}, {len(maps)} maps "
                f"and {len(sample['masks'])} ground-truth masks; expected (classes, height, width) {expected}"
            )
        if not maps.isfinite().all():
            raise FXError(
                f"{self.spec.name}: {sample['file_name']}: the model's masks are not finite: training has diverged"
            )
        full, small = predicted.detach().cpu().numpy().astype(bool), (maps.detach().float() > 0.5).cpu().numpy()
        shrink = ResizeTransform(old=size, new=small.shape[1:]).apply_segmentation
        ignored = sample.get("ignore_mask")
        valid = None if ignored is None else ~_decode(ignored, size, sample["file_name"])
        small_valid = None if valid is None else shrink(valid)
        row = np.full((len(FIELDS), expected[0]), np.nan)
        for i, encoded in enumerate(sample["masks"]):
            if encoded is None:
                continue
            truth = _decode(encoded, size, sample["file_name"])
            row[:3, i] = overlap(full[i], truth, valid)
            row[3:6, i] = overlap(small[i], shrink(truth), small_valid)
            if self.options.hausdorff:
                counted = np.ones(size, bool) if valid is None else valid
                row[6, i] = hausdorff95(full[i] & counted, truth & counted)
        return None if np.isnan(row[0]).all() else row

    def metrics(self, rows: Mapping[int, np.ndarray]) -> dict[str, float]:
        """Metrics over a set of images.

        Returns:
            "dice" and "iou" by the paper's convention (1 if both masks are empty; mean over images, then classes),
            "dice_positives" and "iou_positives" (images whose ground truth is not empty), the same four with the prefix
            "network_", with TEST.HAUSDORFF "hd95" (in pixels; images where neither mask is empty). All also per class
            ("dice/<class>"). "seg_defined": number of classes with an annotated image. "images": number of images.
        """
        names = self.spec.seg_classes
        columns = {key: [nan_mean(column) for column in values.T] for key, values in self._values(rows).items()}
        result = {key: nan_mean(column) for key, column in columns.items()}
        for key, column in columns.items():
            result |= {f"{key}/{name}": value for name, value in zip(names, column, strict=True)}
        defined = sum(not np.isnan(value) for value in columns["dice"])
        return result | {"seg_defined": float(defined), "images": float(len(rows))}

    def drawn(self, rows: Mapping[int, np.ndarray]) -> Drawn:
        """All metrics except the counts, mean and per class."""
        columns = self._values(rows)
        defined = {key: ~np.isnan(table).all(axis=0) for key, table in columns.items()}

        def values(weights: np.ndarray) -> dict[str, np.ndarray]:
            found = {}
            for key, table in columns.items():
                means = weighted_means(table, weights)
                found[key] = mean_over_classes(list(means.T[defined[key]]), len(weights))
                found |= {f"{key}/{name}": means[:, i] for i, name in enumerate(self.spec.seg_classes)}
            return found

        return values

    def details(self, rows: Mapping[int, np.ndarray]) -> dict[str, Any]:
        """Number of images in which each class is annotated, and of those in which it is present."""
        table = self._table(rows)
        known = (~np.isnan(table[:, 0])).sum(axis=0)
        positive = (table[:, FIELDS.index("positive")] == 1).sum(axis=0)
        pairs = zip(self.spec.seg_classes, known, positive, strict=True)
        return {"counts": {name: {"images": int(k), "positive": int(p)} for name, k, p in pairs}}

    def arrays(self, rows: Mapping[int, np.ndarray], images: Sequence[int]) -> dict[str, np.ndarray]:
        """Arrays "seg_<field>", float64 (N, C), for FIELDS over all `images`; NaN where unknown or without a row."""
        unknown = np.full((len(FIELDS), len(self.spec.seg_classes)), np.nan)
        table = self._table({i: rows.get(i, unknown) for i in images})
        return {f"seg_{field}": table[:, k] for k, field in enumerate(FIELDS)}

    def restored(self, arrays: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
        """Inverse of `arrays`."""
        table = np.stack([arrays[f"seg_{field}"] for field in FIELDS], axis=1)
        known = ~np.isnan(arrays["seg_dice"]).all(axis=1)
        return {image: table[i] for i, image in enumerate(arrays["image_id"].tolist()) if known[i]}

    def _table(self, rows: Mapping[int, np.ndarray]) -> np.ndarray:
        return np.array(list(rows.values()), np.float64).reshape(-1, len(FIELDS), len(self.spec.seg_classes))

    def _values(self, rows: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
        """Values (N, C) of each metric, NaN where an image does not count."""
        table = self._table(rows)
        values: dict[str, np.ndarray] = {}
        for key in _OVERLAPS:
            column = table[:, FIELDS.index(key)]
            positive = table[:, FIELDS.index("network_positive" if key.startswith("network") else "positive")]
            values[key] = column
            values[f"{key}_positives"] = np.where(positive == 1, column, np.nan)
        if self.options.hausdorff:
            values["hd95"] = table[:, FIELDS.index("hd95")]
        return values


def _decode(encoded: dict[str, Any], size: tuple[int, int], file_name: str) -> np.ndarray:
    """Bool (H, W) mask of a compressed RLE; raises FXError if its size differs from the image's."""
    if tuple(encoded["size"]) != size:
        raise FXError(
            f"{file_name}: mask of {tuple(encoded['size'])} pixels on an image of {size} (height, width): "
            "prepare the dataset again"
        )
    return mask_utils.decode(encoded).astype(bool)
