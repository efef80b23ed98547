"""Boxes that a release does not provide: extents of masks, and the fusion of several readers' boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from fx_d2.data.codecs import merge_masks
from fx_d2.data.masks import encode_mask
from fx_d2.structures import DatasetSpec, FXError

Box = list[float]
"""x, y, width, height in pixels."""

BOX_SLACK = 1.0
"""Pixels by which a box of a release may exceed its image; `clip_box` clips it."""

MASK_RULES = ("annotations", "components", "extent")
"""How boxes are derived from the masks of a class: see `boxes_of_masks`."""


def boxes_of_masks(masks: Sequence[np.ndarray], rule: str) -> list[Box]:
    """Derive the boxes of one class from its masks on one image.

    Args:
        masks: one array (H, W) per annotation, nonzero = foreground; equal shapes, may overlap or be empty.
        rule: "annotations": the extent of each mask; "components": of each 8-connected component of their union;
            "extent": of the whole union.

    Returns:
        boxes [x, y, w, h] in whole pixels; none for empty masks.
    """
    if rule not in MASK_RULES:
        raise FXError(f"rule {rule!r} for boxes from masks must be one of {MASK_RULES}")
    if not masks:
        return []
    parts = [mask != 0 for mask in masks]
    if rule != "annotations":
        parts = [np.any(parts, axis=0)]
    if rule == "components":
        _, _, stats, _ = cv2.connectedComponentsWithStats(parts[0].astype(np.uint8), connectivity=8)
        return [[float(v) for v in row[:4]] for row in stats[1:]]
    return [_extent(part) for part in parts if part.any()]


def annotate_from_masks(
    spec: DatasetSpec, masks: Mapping[str, Sequence[np.ndarray]], shape: tuple[int, int], rule: str
) -> dict[str, Any]:
    """Labels, boxes and masks of an image that is annotated with masks only, as fields for `write_split`.

    Args:
        spec: the dataset row; its classes have the same names in every task.
        masks: class name -> masks (H, W), one per annotation; a class without an entry is absent.
        shape: (H, W).
        rule: see `boxes_of_masks`.

    Returns:
        `labels` (1 if any pixel of the class is set, else 0), `boxes` and `masks` (merged per class); each is None if
        the row has no classes for it.
    """
    merged = {name: merge_masks([np.zeros(shape, np.uint8), *found]) for name, found in masks.items()}
    empty = np.zeros(shape, np.uint8)
    boxes = [(name, box) for name in spec.loc_classes for box in boxes_of_masks(masks.get(name, ()), rule)]
    return {
        "labels": [int(merged.get(name, empty).any()) for name in spec.cls_classes] or None,
        "boxes": boxes if spec.loc_classes else None,
        "masks": [encode_mask(merged.get(name, empty)) for name in spec.seg_classes] or None,
    }


def fuse_boxes(boxes: Sequence[Box], min_iou: float) -> tuple[list[Box], list[list[int]]]:
    """Weighted boxes fusion (Solovyev et al. 2021) without scores, for the boxes of one class by several readers.

    In the given order, a box joins the fused box with the highest IoU if that exceeds `min_iou`, otherwise it starts a
    new one. A fused box is the unweighted mean of its members' corners and is updated with each.

    Args:
        boxes: [x, y, w, h] of one class on one image.
        min_iou: intersection over union above which two boxes are the same object, in (0, 1).

    Returns:
        the fused boxes, and for each the indices of its members in `boxes`.
    """
    corners = [np.array([x, y, x + w, y + h], dtype=np.float64) for x, y, w, h in boxes]
    fused: list[np.ndarray] = []
    members: list[list[int]] = []
    for place, corner in enumerate(corners):
        overlaps = [_iou(corner, other) for other in fused]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best < 0 or overlaps[best] <= min_iou:
            fused.append(corner)
            members.append([place])
        else:
            members[best].append(place)
            fused[best] = np.mean([corners[i] for i in members[best]], axis=0)
    return [[float(a), float(b), float(c - a), float(d - b)] for a, b, c, d in fused], members


def clip_box(corners: Sequence[float], shape: tuple[int, int]) -> Box:
    """The box [x, y, w, h] of corners x1, y1, x2, y2, clipped to the image (height, width).

    Raises:
        FXError: a coordinate that is not a finite number, a box that exceeds its image by more than BOX_SLACK pixels
            (annotated at another image size), or a box without area.
    """
    try:
        box = np.asarray(corners, dtype=np.float64)
    except (TypeError, ValueError):
        box = np.empty(0)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise FXError(f"box {corners!r} must be four finite numbers x1, y1, x2, y2")
    height, width = shape
    limits = np.array([width, height, width, height])
    if (box < -BOX_SLACK).any() or (box > limits + BOX_SLACK).any():
        raise FXError(f"box {box.tolist()} extends beyond its image of {width} x {height} pixels")
    x1, y1, x2, y2 = np.clip(box, 0, limits).tolist()
    if x2 <= x1 or y2 <= y1:
        raise FXError(f"box {box.tolist()} has no area")
    return [x1, y1, x2 - x1, y2 - y1]


def _extent(mask: np.ndarray) -> Box:
    """The bounding box of a non-empty bool mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return [float(columns[0]), float(rows[0]), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = float(sides.prod())
    return both / float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)
