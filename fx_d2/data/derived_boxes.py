"""Boxes that a release does not state: extents of masks, and one box from those of several readers."""

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

MASK_RULES = ("annotations", "components", "extent")
"""How boxes follow from the masks of a class: see `boxes_of_masks`."""


def boxes_of_masks(masks: Sequence[np.ndarray], rule: str) -> list[Box]:
    """The boxes of one class from its masks on one image.

    Args:
        masks: one array (H, W) an annotation, nonzero = inside; equal shapes, may overlap or be empty.
        rule: "annotations": the extent of each mask; "components": of each 8-connected piece of their union;
            "extent": of the union as a whole.

    Returns:
        boxes [x, y, w, h] of whole pixels; empty masks give none.
    """
    if rule not in MASK_RULES:
        raise FXError(f"rule {rule!r} of boxes from masks must be one of {MASK_RULES}")
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
    """Labels, boxes and masks of an image whose findings are all masks: part of a mapping for `write_split`.

    Args:
        spec: the row; its classes have the same names in every task.
        masks: class name -> masks (H, W) of its annotations, by `boxes_of_masks`; a class without is absent.
        shape: (H, W).
        rule: see `boxes_of_masks`.

    Returns:
        `labels` (1 where a mask has a pixel, else 0), `boxes` and `masks` (merged), each None where the row has no
        classes for it.
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
    """Weighted boxes fusion (Solovyev et al. 2021) of boxes without scores: boxes of one class by several readers.

    In the given order a box joins the fused box it overlaps most, if by more than `min_iou`, else it begins a new one;
    a fused box is the mean of the corners of its members and moves with each. Readers' boxes weigh the same.

    Args:
        boxes: [x, y, w, h] of one class on one image.
        min_iou: intersection over union above which two boxes mean one thing, in (0, 1).

    Returns:
        the fused boxes, and for each the places of its members in `boxes`.
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


def clip_box(corners: Sequence[float], shape: tuple[int, int], slack: float = 1.0) -> Box:
    """The box [x, y, w, h] of corners x1, y1, x2, y2, cut to the image (height, width).

    Raises:
        FXError: a corner that is no finite number, a box that leaves its image by more than `slack` pixels (so that it
            was drawn on an image of another size), or one without area.
    """
    box, (height, width) = np.asarray(corners, dtype=np.float64), shape
    limits = np.array([width, height, width, height])
    if box.shape != (4,) or not np.isfinite(box).all():
        raise FXError(f"box {list(corners)} must be four finite numbers x1, y1, x2, y2")
    if (box < -slack).any() or (box > limits + slack).any():
        raise FXError(f"box {box.tolist()} leaves its image of {width} x {height} pixels")
    x1, y1, x2, y2 = np.clip(box, 0, limits).tolist()
    if x2 <= x1 or y2 <= y1:
        raise FXError(f"box {box.tolist()} has no area")
    return [x1, y1, x2 - x1, y2 - y1]


def _extent(mask: np.ndarray) -> Box:
    """The box of the True pixels of a mask that has some."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return [float(columns[0]), float(rows[0]), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes given by corners x1, y1, x2, y2."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = float(sides.prod())
    return both / float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)
