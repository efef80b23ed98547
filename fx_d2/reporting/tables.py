"""Tables as data, and as Markdown, CSV and json. All shares are in percent here."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate  # type: ignore[import-untyped]

from fx_d2.reporting.runs import Run

MEANS = "several runs: mean \N{PLUS-MINUS SIGN} standard deviation (n - 1) over seeds (number of runs)"
"""What `pooled` gives, for notes."""

UP, DOWN, SAME = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}", "="


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of a table, never NaN: what is unknown is the cell "".

    Attributes:
        value: in the units shown.
        interval: its 95 % interval.
        deviation: standard deviation over runs (n - 1), where the value is a mean of at least two.
        runs: number of runs behind a mean.
        signed: a difference, shown with its sign and an arrow.
        digits: after the point.
    """

    value: float
    interval: tuple[float, float] | None = None
    deviation: float | None = None
    runs: int = 1
    signed: bool = False
    digits: int = 2

    def __str__(self) -> str:
        return " ".join(filter(None, (self.main, self.range)))

    @property
    def main(self) -> str:
        """The number itself; the arrow follows what is shown, so that a gain below the last digit is none."""
        shown = round(self.value, self.digits) + 0.0  # no minus before a zero
        text = f"{shown:{'+' if self.signed and shown else ''}.{self.digits}f}"
        if self.signed:
            text += f" {UP if shown > 0 else DOWN if shown < 0 else SAME}"
        if self.deviation is not None:
            text += f" \N{PLUS-MINUS SIGN} {self.deviation:.{self.digits}f} ({self.runs})"
        return text

    @property
    def range(self) -> str:
        """Its interval, or ""; of a difference with all digits, since it matters on which side of zero an end lies."""
        if self.interval is None:
            return ""
        digits = self.digits if self.signed else 1
        ends = (round(end, digits) + 0.0 for end in self.interval)
        low, high = (f"{end:{'+' if self.signed and end else ''}.{digits}f}" for end in ends)
        return f"[{low}, {high}]"

    def data(self) -> dict[str, Any]:
        """Plain data, without what is not known."""
        found: dict[str, Any] = {"value": self.value}
        if self.interval is not None:
            found |= {"low": self.interval[0], "high": self.interval[1]}
        if self.deviation is not None:
            found |= {"deviation": self.deviation, "runs": self.runs}
        return found


Cell = Number | str
"""A number, or text; "" is blank."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under named columns.

    Attributes:
        key: name of its file; unique in a report.
        title: what it shows.
        columns: names.
        rows: as many cells as columns each.
        notes: sentences below it.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column whether it holds numbers."""
        return tuple(any(isinstance(row[i], Number) for row in self.rows) for i in range(len(self.columns)))

    def markdown(self) -> str:
        """A pipe table with its notes."""
        align = ["right" if numeric else "left" for numeric in self.numeric]
        cells = [list(map(_piped, row)) for row in self.rows]
        head = list(map(_piped, self.columns))
        text = tabulate(cells, head, "pipe", disable_numparse=True, colalign=align if cells else None)
        return "\n".join([text, *(["", *(f"- {note}" for note in self.notes)] if self.notes else [])])

    def csv(self) -> str:
        """Numbers unrounded; an interval, a deviation and a count are columns of their own, if any row has them."""
        parts = [_parts([row[i] for row in self.rows]) for i in range(len(self.columns))]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        heads = [[name, *(f"{name} {part}" for part in more)] for name, more in zip(self.columns, parts, strict=True)]
        writer.writerow([name for group in heads for name in group])
        for row in self.rows:
            writer.writerow([v for cell, more in zip(row, parts, strict=True) for v in _values(cell, more)])
        return stream.getvalue()

    def data(self) -> dict[str, Any]:
        """Plain data: a row is a list of strings, null (blank) and mappings with "value"."""
        rows = [[cell.data() if isinstance(cell, Number) else cell or None for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "notes": list(self.notes)}


def _piped(cell: Cell) -> str:
    """A cell on one line, without the sign that would end it."""
    return " ".join(str(cell).split()).replace("|", "\\|")


def _parts(column: Sequence[Cell]) -> list[str]:
    found = [key for cell in column if isinstance(cell, Number) for key in cell.data()]
    return [key for key in ("low", "high", "deviation", "runs") if key in found]


def _values(cell: Cell, parts: Sequence[str]) -> list[Any]:
    if not isinstance(cell, Number):
        return [cell, *[""] * len(parts)]
    data = cell.data()
    return [data["value"], *(data.get(part, "") for part in parts)]


def percent(share: float | None, interval: Sequence[float] | None = None) -> Cell:
    """A share as a number in percent; blank where it is None or NaN."""
    if share is None or math.isnan(share):
        return ""
    pair = (100 * interval[0], 100 * interval[1]) if interval is not None else None
    return Number(value=100 * share, interval=pair)


def count(number: float | None) -> Cell:
    """A whole number; blank where it is None or NaN."""
    return "" if number is None or math.isnan(number) else Number(value=number, digits=0)


def pooled(runs: Iterable[Run], which: str, split: str, task: str, metric: str, classes: Sequence[str] = ()) -> Cell:
    """A metric of one run with its interval, or the mean and deviation over several; blank where none has it.

    Args:
        runs: repetitions of one method.
        which: "student" or "teacher".
        split: registered split; runs that were evaluated on another one do not count.
        task: the task.
        metric: the metric.
        classes: take the mean of these classes instead of the dataset's.
    """
    keys = [f"{metric}/{name}" for name in classes] or [metric]
    found = []
    for run in runs:
        if run.results is not None:
            value = float(np.mean([run.results.value(which, split, task, key) for key in keys]))
            if not math.isnan(value):
                found.append((value, run.results.interval(which, split, task, keys[0]) if len(keys) == 1 else None))
    if len(found) < 2:
        return percent(*found[0]) if found else ""
    values = [100 * value for value, _ in found]
    return Number(value=float(np.mean(values)), deviation=float(np.std(values, ddof=1)), runs=len(values))


def difference(first: Cell, second: Cell, interval: Sequence[float] | None = None) -> Cell:
    """How far the second number is above the first, with its interval, as shares; blank without both."""
    if not isinstance(first, Number) or not isinstance(second, Number):
        return ""
    pair = (100 * interval[0], 100 * interval[1]) if interval is not None else None
    return Number(value=second.value - first.value, interval=pair, signed=True)
