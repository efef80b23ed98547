"""What is drawn on one image, from an annotation or from a model, and in which colours."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_utils

from fx_d2.data.masks import image_masks
from fx_d2.structures import DatasetSpec

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Findings:
    """Labels, boxes and masks of one image; None for a task that is not annotated or not predicted.

    Attributes:
        labels: per image-level class, the ground truth (1, 0, None = unknown) or a probability.
        boxes: (N, 4) float xyxy in original pixels.
        classes: (N,) int, 0-based box classes.
        scores: (N,) float; None for annotations.
        masks: per mask class, bool (H, W) in original pixels; None = unknown.
    """

    labels: tuple[float | None, ...] | None = None
    boxes: np.ndarray | None = None
    classes: np.ndarray | None = None
    scores: np.ndarray | None = None
    masks: tuple[np.ndarray | None, ...] | None = None


def truth_findings(sample: Mapping[str, Any]) -> Findings:
    """Annotation of an image; `sample` is a dict of the DatasetCatalog or an evaluation sample.

    Uncertain (-1) and blank (None, NaN) labels become None.
    """
    annotated = sample["annotated"]
    labels = boxes = classes = masks = None
    if annotated["cls"] and sample.get("labels") is not None:
        labels = tuple(_known(v) for v in sample["labels"])
    if annotated["loc"]:
        annotations = sample.get("annotations") or []
        rows = [BoxMode.convert(list(a["bbox"]), BoxMode(a["bbox_mode"]), BoxMode.XYXY_ABS) for a in annotations]
        boxes = np.array(rows, np.float64).reshape(-1, 4)
        classes = np.array([a["category_id"] for a in annotations], np.int64)
    if annotated["seg"] and sample.get("masks") is not None:
        masks = _decode_all(image_masks(sample) or [])
    return Findings(labels=labels, boxes=boxes, classes=classes, masks=masks)


def training_findings(sample: Mapping[str, Any]) -> Findings:
    """Targets of a training sample of `TrainMapper`, in pixels of its image; labels as they enter the loss."""
    if sample["task"] == "cls":
        return Findings(labels=tuple(None if math.isnan(v) else v for v in sample["labels"].tolist()))
    if sample["task"] == "loc":
        truth = sample["instances"]
        return Findings(boxes=truth.gt_boxes.tensor.double().numpy(), classes=truth.gt_classes.numpy())
    pairs = zip(sample["masks"].numpy() > 0, sample["mask_known"].tolist(), strict=True)
    return Findings(masks=tuple(mask if known else None for mask, known in pairs))


def predicted_findings(record: Mapping[str, Any], score_thresh: float) -> Findings:
    """Model output from its saved record (`evaluation.prediction_record`); boxes with score >= `score_thresh`."""
    boxes = classes = scores = None
    if "boxes" in record:
        scores = np.array(record["scores"], np.float64)
        kept = scores >= score_thresh
        scores = scores[kept]
        boxes = np.array(record["boxes"], np.float64).reshape(-1, 4)[kept]
        classes = np.array(record["classes"], np.int64)[kept]
    return Findings(
        labels=tuple(record["cls"]) if "cls" in record else None,
        boxes=boxes,
        classes=classes,
        scores=scores,
        masks=_decode_all(record["masks"]) if "masks" in record else None,
    )


def class_colors(spec: DatasetSpec) -> dict[str, Color]:
    """A fixed RGB colour in [0, 1] per box or mask class; a class name has the same colour in both tasks.

    Hues advance by the golden ratio, so that neighbours in the list differ most, in three tones.
    Dark hues are mixed with white until they are legible on black.
    """
    names = list(dict.fromkeys((*spec.loc_classes, *spec.seg_classes)))
    tones = ((0.85, 1.0), (0.5, 1.0), (0.9, 0.8))
    golden = (math.sqrt(5) - 1) / 2
    hues = [(0.1 + i * golden) % 1 for i in range(len(names))]
    return {n: _legible(colorsys.hsv_to_rgb(hues[i], *tones[i // 6 % 3])) for i, n in enumerate(names)}


def _legible(color: Color, luminance: float = 0.42) -> Color:
    """The colour mixed with white up to the given luminance (BT.709 weights, applied to gamma-encoded values)."""
    red, green, blue = color
    own = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    share = max(0.0, (luminance - own) / (1 - own)) if own < 1 else 0.0
    return (red + share * (1 - red), green + share * (1 - green), blue + share * (1 - blue))


def _known(value: float | None) -> float | None:
    return float(value) if value is not None and float(value) in (0.0, 1.0) else None


def _decode_all(encoded: list[dict[str, Any] | None]) -> tuple[np.ndarray | None, ...]:
    return tuple(None if rle is None else mask_utils.decode(rle).astype(bool) for rle in encoded)
