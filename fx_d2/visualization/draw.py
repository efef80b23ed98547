"""Ground truth next to the prediction for one image and all of its tasks, drawn with Detectron2's Visualizer.

The figure has two panels of a fixed size, whatever the size of the X-ray, and a text column, so lines and letters are
equally legible for a 224-pixel and a 3000-pixel image.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from fx_d2.evaluation.segmentation import dice
from fx_d2.structures import DatasetSpec, FXError
from fx_d2.visualization.column import ROW, WIDTH, Row, paint_rows, write_rows
from fx_d2.visualization.findings import Color, Findings, class_colors
from fx_d2.visualization.page import DIM, SMALL, Box, Page, fill_masks

PANEL = 760
"""Longer side of a panel in pixels of the figure."""

HEADER, FOOTER, GAP = 40, 34, 12
"""Pixels: height of the lines above and below the panels, space between panels."""

MARKS: dict[float | None, tuple[str, Color]] = {
    1.0: ("\N{CHECK MARK}", (0.45, 1.0, 0.45)),
    0.0: ("\N{BALLOT X}", DIM),
    None: ("?", (1.0, 0.85, 0.3)),
}

NOTICE = "research use only"


def draw_comparison(
    image: np.ndarray,
    spec: DatasetSpec,
    truth: Findings,
    prediction: Findings,
    *,
    which: str = "student",
    caption: str = "",
) -> np.ndarray:
    """Draw one image twice, with its annotation and with the output of a model, and list class probabilities.

    Args:
        image: uint8 (H, W), grey.
        spec: dataset row (`DatasetSpec`), for names and colours.
        truth: the annotation; its masks must have the size of `image`.
        prediction: the output of the model.
        which: "student" or "teacher", for the header.
        caption: text of the footer, such as the file name.

    Returns:
        uint8 (H', W', 3) RGB. Raises FXError for another kind of image, or labels, boxes or masks that do not fit.
    """
    _check(image, spec, truth, prediction)
    panels = [("ground truth", truth), (f"prediction: {which}", prediction)]
    return draw_panels(image, spec, panels, _info_rows(spec, truth, prediction), caption)


def draw_panels(
    image: np.ndarray, spec: DatasetSpec, panels: Sequence[tuple[str, Findings]], rows: Sequence[Row], caption: str
) -> np.ndarray:
    """Draw one image once for each (title, findings), side by side, followed by a text column.

    Returns and raises as `draw_comparison` does.
    """
    _check(image, spec, *(found for _, found in panels))
    scale = PANEL / max(image.shape)
    height, width = (max(1, round(side * scale)) for side in image.shape)
    body = max(height, ROW * len(rows) + GAP)
    corners = [GAP + i * (width + GAP) for i in range(len(panels) + 1)]
    info = corners.pop()
    canvas = np.zeros((HEADER + body + FOOTER, info + WIDTH, 3), np.uint8)
    grey = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    for x in corners:
        canvas[HEADER : HEADER + height, x : x + width] = grey[..., None]
    colors = class_colors(spec)
    placed = [(title, found, x) for (title, found), x in zip(panels, corners, strict=True)]
    outlines = [fill_masks(canvas, found, (x, HEADER), (height, width), spec, colors) for _, found, x in placed]
    column, right = (info, HEADER), canvas.shape[1] - GAP
    paint_rows(canvas, rows, column, right)

    page = Page(canvas)
    for (title, found, x), lines in zip(placed, outlines, strict=True):
        for polygon, color in lines:
            page.outline(polygon, color)
        page.boxes(found, spec, colors, Box(x, HEADER, x + width, HEADER + height), scale)
        page.text(title, x, 8)
    page.text(spec.title, info, 8)
    write_rows(page, rows, column, right)
    page.text(f"{NOTICE}   {caption}".rstrip(), GAP, canvas.shape[0] - FOOTER + 8, size=SMALL, color=DIM)
    return page.render()


def _check(image: np.ndarray, spec: DatasetSpec, *found: Findings) -> None:
    if image.ndim != 2 or image.dtype != np.uint8:
        raise FXError(f"expected a grey uint8 image (H, W), got {image.dtype} {image.shape}")
    for findings in found:
        for task, values in (("cls", findings.labels), ("seg", findings.masks)):
            if values is not None and len(values) != len(spec.classes(task)):
                raise FXError(
                    f"{spec.name}: {len(values)} values for {len(spec.classes(task))} {task}_classes: "
                    "they belong to another dataset or version"
                )
        for mask in findings.masks or ():
            if mask is not None and mask.shape != image.shape:
                raise FXError(f"{spec.name}: mask of size {mask.shape} on an image of size {image.shape}")
        if findings.classes is not None and (findings.classes >= len(spec.loc_classes)).any():
            raise FXError(f"{spec.name}: box class {findings.classes.max()} for {len(spec.loc_classes)} loc_classes")


def _info_rows(spec: DatasetSpec, truth: Findings, prediction: Findings) -> list[Row]:
    """The text column: class probabilities with ground-truth marks, then box counts and Dice per class."""
    rows = []
    if spec.cls_classes:
        rows.append(Row("ground truth, class, probability", color=DIM))
        for i, name in enumerate(spec.cls_classes):
            mark, color = MARKS[truth.labels[i] if truth.labels is not None else None]
            p = prediction.labels[i] if prediction.labels is not None else None
            value = "" if p is None else f"{p:.2f}"
            rows.append(Row(name, value, mark=mark, mark_color=color, bar=p))
    if spec.loc_classes or spec.seg_classes:
        heads = [_head(spec, truth, task) for task in ("loc", "seg")]
        rows += [Row("")] * bool(rows) + [Row("class", heads[1], middle=heads[0], color=DIM)]
        rows += _class_rows(spec, truth, prediction) or [Row("none predicted, none annotated", color=DIM)]
    return rows


def _head(spec: DatasetSpec, truth: Findings, task: str) -> str:
    """Head of the column of box counts or of Dice; "(?)" marks a task for which the image is not annotated."""
    if not spec.classes(task):
        return ""
    known = (truth.boxes if task == "loc" else truth.masks) is not None
    title = "boxes, GT / predicted" if task == "loc" else "Dice"
    return title if known else f"{title} (?)"


def _class_rows(spec: DatasetSpec, truth: Findings, prediction: Findings) -> list[Row]:
    """Box counts and Dice of each class with a box or mask in either panel; "?" if the ground truth is unknown."""
    rows = []
    for name, color in class_colors(spec).items():
        boxes, overlap = _count_boxes(name, spec, truth, prediction), _overlap(name, spec, truth, prediction)
        if boxes or overlap:
            rows.append(Row(name, overlap, middle=boxes, swatch=color))
    return rows


def _count_boxes(name: str, spec: DatasetSpec, truth: Findings, prediction: Findings) -> str:
    if name not in spec.loc_classes:
        return ""
    i = spec.loc_classes.index(name)
    counts = [None if f.classes is None else int((f.classes == i).sum()) for f in (truth, prediction)]
    return " / ".join("?" if c is None else str(c) for c in counts) if any(counts) else ""


def _overlap(name: str, spec: DatasetSpec, truth: Findings, prediction: Findings) -> str:
    # Over the whole image; the metric leaves out ignored pixels.
    if name not in spec.seg_classes:
        return ""
    i = spec.seg_classes.index(name)
    pair = [f.masks[i] if f.masks is not None else None for f in (truth, prediction)]
    if not any(mask is not None and mask.any() for mask in pair):
        return ""
    return "?" if pair[0] is None or pair[1] is None else f"{dice(pair[1], pair[0]):.2f}"
