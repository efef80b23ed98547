"""Text column next to the image panels of a figure: rows with a mark or colour swatch, a name, values and a bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fx_d2.visualization.findings import Color
from fx_d2.visualization.page import SMALL, WHITE, Page

WIDTH, ROW = 420, 25
"""Pixels of the figure: width of the column, height of a row."""

NAME = 27
"""Characters of a class name that fit to the left of its bar."""

BAR: Color = (0.36, 0.54, 0.74)

_BAR_LENGTH, _BAR_END = 110, 50
"""Pixels: length of a full bar, and distance from its end to the end of the row."""


@dataclass(frozen=True)
class Row:
    """One row of the text column.

    Attributes:
        name: text on the left; truncated if it would run into a value or bar.
        value: text at the right end.
        middle: text at the right end of the middle column.
        mark: symbol before the name, in `mark_color`.
        swatch: colour of a square before the name.
        bar: length of a bar in [0, 1].
        tick: position of a line on the bar in [0, 1].
        color: colour of the texts.
    """

    name: str
    value: str = ""
    middle: str = ""
    mark: str = ""
    mark_color: Color = WHITE
    swatch: Color | None = None
    bar: float | None = None
    tick: float | None = None
    color: Color = WHITE


def paint_rows(canvas: np.ndarray, rows: Sequence[Row], corner: tuple[int, int], right: int) -> None:
    """Paint swatches, bars and ticks onto the canvas in place, before it is passed to `Page`.

    Args:
        canvas: uint8 (H, W, 3).
        rows: top to bottom.
        corner: (x, y) of the top left corner of the column.
        right: x of its right edge.
    """
    x, top = corner
    start = right - _BAR_END - _BAR_LENGTH
    for i, row in enumerate(rows):
        y = top + ROW * i
        if row.swatch is not None:
            canvas[y + 3 : y + 17, x : x + 14] = np.round(255 * np.array(row.swatch))
        if row.bar is not None and np.isfinite(row.bar):
            length = round(_BAR_LENGTH * min(max(row.bar, 0.0), 1.0))
            canvas[y + 3 : y + 17, start : start + _BAR_LENGTH] = 40
            canvas[y + 3 : y + 17, start : start + length] = np.round(255 * np.array(BAR))
        if row.tick is not None:
            left = start + round((_BAR_LENGTH - 2) * min(max(row.tick, 0.0), 1.0))
            canvas[y : y + 20, left : left + 2] = 255


def write_rows(page: Page, rows: Sequence[Row], corner: tuple[int, int], right: int) -> None:
    """Write the texts. Arguments as in `paint_rows`."""
    x, top = corner
    for i, row in enumerate(rows):
        y = top + ROW * i + 3
        if row.mark:
            page.text(row.mark, x, y, size=SMALL, color=row.mark_color)
        alone = row.bar is None and not row.middle and not row.value
        name = row.name if alone or len(row.name) <= NAME else row.name[: NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
        page.text(name, x + (22 if row.mark or row.swatch else 0), y, size=SMALL, color=row.color)
        page.text(row.middle, right - 85, y, size=SMALL, color=row.color, end=True)
        page.text(row.value, right, y, size=SMALL, color=row.color, end=True)
