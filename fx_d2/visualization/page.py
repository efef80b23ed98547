"""Drawing on grey images with Detectron2's Visualizer: outlines, boxes and labels."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from detectron2.utils.visualizer import GenericMask, Visualizer

from fx_d2.structures import DatasetSpec
from fx_d2.visualization.findings import Color, Findings

TEXT, SMALL = 17, 15
"""Font sizes in pixels of the figure."""

FILL = 0.18
"""Opacity of a mask; its outline is opaque."""

WHITE: Color = (1.0, 1.0, 1.0)
DIM: Color = (0.8, 0.8, 0.8)


class Box(NamedTuple):
    """Corners of a rectangle in the figure."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two rectangles share more than an edge."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1


class Page:
    """A canvas drawn on with Detectron2's Visualizer, with sizes in pixels of the figure."""

    def __init__(self, canvas: np.ndarray) -> None:
        self._viz = Visualizer(canvas)
        self._viz._default_font_size = 9.0  # sets the line width: boxes are 2.25 points wide
        self._labels: list[Box] = []

    def text(self, text: str, x: float, y: float, *, size: int = TEXT, color: Color = WHITE, end: bool = False) -> None:
        """Write a line of text with its top at y, starting at x, or ending there with `end`."""
        points = size * 72 / self._viz.output.dpi
        align = "right" if end else "left"
        escaped = text.replace("$", r"\$")
        self._viz.draw_text(escaped, (x, y), font_size=points, color=color, horizontal_alignment=align)

    def outline(self, polygon: np.ndarray, color: Color) -> None:
        """Draw a closed, unfilled line through (N, 2) points."""
        self._viz.draw_polygon(polygon, color=color, alpha=0.0)

    def boxes(self, found: Findings, spec: DatasetSpec, colors: dict[str, Color], panel: Box, scale: float) -> None:
        """Draw the boxes of one panel with class name and score, if any; the highest score on top."""
        if found.boxes is None or found.classes is None:
            return
        order = range(len(found.boxes)) if found.scores is None else np.argsort(-found.scores, kind="stable")
        drawn = []
        for i in order:
            name = spec.loc_classes[found.classes[i]]
            x0, y0, x1, y1 = found.boxes[i] * scale + [panel.x0, panel.y0, panel.x0, panel.y0]
            box = Box(max(x0, panel.x0), max(y0, panel.y0), min(x1, panel.x1), min(y1, panel.y1))
            drawn.append((name if found.scores is None else f"{name} {found.scores[i]:.2f}", box, colors[name]))
        for _, box, color in reversed(drawn):
            self._viz.draw_box(box, alpha=1.0, edge_color=color)
        for label, box, color in drawn:
            self._label(label, box, panel, color)

    def _label(self, label: str, box: Box, panel: Box, color: Color) -> None:
        """Place a label at its box, inside the panel and, if possible, clear of other labels."""
        self.text(label, box.x0, box.y0, size=SMALL, color=color)
        artist = self._viz.output.ax.texts[-1]
        extent = artist.get_window_extent(self._viz.output.canvas.get_renderer())
        width, height = extent.width + 4, extent.height + 4
        corners = [(x, y) for y in (box.y0 - height, box.y1 + 2) for x in (box.x0, box.x1 - width)]
        corners += [(box.x0 + 2, box.y0 + 2 + i * height) for i in range(12)]
        inside = [
            Box(x, y, x + width, y + height)
            for x, y in ((min(max(x, panel.x0), panel.x1 - width), y) for x, y in corners)
            if panel.y0 <= y <= panel.y1 - height
        ]
        free = [p for p in inside if not any(p.overlaps(other) for other in self._labels)]
        chosen = (free or inside or [Box(box.x0, box.y0, box.x0 + width, box.y0 + height)])[0]
        self._labels.append(chosen)
        artist.set_position((chosen.x0 + 2, chosen.y0 + 2))

    def render(self) -> np.ndarray:
        """The figure, uint8 RGB, in the size of the canvas."""
        return np.ascontiguousarray(self._viz.output.get_image())


def fill_masks(
    canvas: np.ndarray,
    found: Findings,
    corner: tuple[int, int],
    size: tuple[int, int],
    spec: DatasetSpec,
    colors: dict[str, Color],
) -> list[tuple[np.ndarray, Color]]:
    """Fill the masks of one panel on the canvas in place.

    Args:
        canvas: uint8 (H, W, 3).
        found: findings, in pixels of the image.
        corner: (x, y) of the top left corner of the panel on the canvas.
        size: (height, width) of the panel.
        spec: dataset row (`DatasetSpec`).
        colors: colours of `class_colors`.

    Returns:
        Outlines of the masks, (N, 2) in canvas pixels, each with its colour.
    """
    (x, y), (height, width) = corner, size
    outlines = []
    panel = canvas[y : y + height, x : x + width]
    for name, mask in zip(spec.seg_classes, found.masks or (), strict=False):
        if mask is None or not mask.any():
            continue
        method = cv2.INTER_AREA if mask.shape[0] > height else cv2.INTER_LINEAR
        share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=method)
        # A structure thinner than a pixel of the figure must not vanish: any coverage of a pixel counts then.
        inside = share >= 0.5 if (share >= 0.5).any() else share > 0
        tint = 255 * np.array(colors[name])
        panel[inside] = np.round((1 - FILL) * panel[inside] + FILL * tint).astype(np.uint8)
        for polygon in GenericMask(inside, height, width).polygons:
            outlines.append((polygon.reshape(-1, 2) + [x, y], colors[name]))
    return outlines
