"""Contact sheets: many samples of a dataset in one figure, with their annotations or targets drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fx_d2.structures import DatasetSpec, FXError
from fx_d2.visualization.findings import Color, Findings, class_colors
from fx_d2.visualization.page import DIM, SMALL, WHITE, Box, Page, fill_masks

CELL, GAP, HEADER, ROW = 300, 10, 34, 20
"""Pixels: longer side of an image on the sheet, gap between images, height of the header and of a text line."""

LETTERS = 30
"""Characters that fit under an image."""

NAMES = 6
"""Maximum number of masks listed by name per image; the rest are counted."""


@dataclass(frozen=True)
class Cell:
    """One image of a contact sheet.

    Attributes:
        image: uint8 (H, W), grey.
        findings: in pixels of the image.
        caption: line of text under the image.
    """

    image: np.ndarray
    findings: Findings
    caption: str


def draw_sheet(cells: Sequence[Cell], spec: DatasetSpec, *, title: str, columns: int = 4) -> np.ndarray:
    """Draw images in a grid with their boxes and masks, and list the classes that are present under each image.

    Args:
        cells: at least one.
        spec: dataset row (`DatasetSpec`), for names and colours.
        title: text of the header.
        columns: images per row.

    Returns:
        uint8 (H, W, 3) RGB. Raises FXError without cells.
    """
    if not cells:
        raise FXError(f"{title}: no image to draw")
    texts = [_lines(cell, spec) for cell in cells]
    height = CELL + ROW * max(map(len, texts)) + GAP
    rows = -(-len(cells) // columns)
    canvas = np.zeros((HEADER + rows * (height + GAP), GAP + columns * (CELL + GAP), 3), np.uint8)
    colors = class_colors(spec)
    corners = [(GAP + i % columns * (CELL + GAP), HEADER + i // columns * (height + GAP)) for i in range(len(cells))]
    scales = [CELL / max(cell.image.shape) for cell in cells]
    outlines = []
    for cell, (x, y), scale in zip(cells, corners, scales, strict=True):
        size = (max(1, round(cell.image.shape[0] * scale)), max(1, round(cell.image.shape[1] * scale)))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas[y : y + size[0], x : x + size[1]] = cv2.resize(cell.image, size[::-1], interpolation=how)[..., None]
        outlines += fill_masks(canvas, cell.findings, (x, y), size, spec, colors)
    page = Page(canvas)
    for polygon, color in outlines:
        page.outline(polygon, color)
    for cell, (x, y), scale in zip(cells, corners, scales, strict=True):
        panel = Box(x, y, x + cell.image.shape[1] * scale, y + cell.image.shape[0] * scale)
        page.boxes(cell.findings, spec, colors, panel, scale)
    page.text(title, GAP, 7)
    for (x, y), lines in zip(corners, texts, strict=True):
        for i, (text, color) in enumerate(lines):
            page.text(text, x, y + CELL + 3 + ROW * i, size=SMALL, color=color)
    return page.render()


def _lines(cell: Cell, spec: DatasetSpec) -> list[tuple[str, Color]]:
    """Caption, present labels (with their value if it is not 1), number of unknown ones, and masks by name."""
    colors = class_colors(spec)
    lines = [(_cut(cell.caption), DIM)]
    labels, masks = cell.findings.labels, cell.findings.masks
    if labels is not None:
        present = [(name, value) for name, value in zip(spec.cls_classes, labels, strict=True) if value]
        lines += [(_cut(name if value == 1 else f"{name} {value:.2f}"), WHITE) for name, value in present]
        unknown = sum(value is None for value in labels)
        lines += [(f"{unknown} of {len(labels)} labels unknown", DIM)] if unknown else []
        lines += [] if present or unknown else [("no label present", DIM)]
    if cell.findings.boxes is not None and not len(cell.findings.boxes):
        lines.append(("annotated, no boxes", DIM))
    if masks is not None:
        named = list(zip(spec.seg_classes, masks, strict=True))
        filled = [(_cut(name), colors[name]) for name, mask in named if mask is not None and mask.any()]
        lines += filled[:NAMES] + [(f"{len(filled) - NAMES} more masks", DIM)] * (len(filled) > NAMES)
        unknown = sum(mask is None for mask in masks)
        lines += [(f"{unknown} of {len(masks)} masks unknown", DIM)] if unknown else []
        lines += [("masks are empty", DIM)] if len(lines) == 1 else []
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else "\N{HORIZONTAL ELLIPSIS}" + text[1 - LETTERS :]
