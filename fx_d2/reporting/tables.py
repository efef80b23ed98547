"""Tables as data, and as Markdown, CSV and JSON. Fractions are in percent here."""

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
"""Note on the values of `pooled`."""

UP, DOWN, SAME = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}", "="


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number in a table, never NaN: unknown values are the cell "".

    Attributes:
        value: value in the displayed unit.
        interval: 95 % interval.
        deviation: standard deviation over runs (n - 1), if the value is a mean over at least two runs.
        runs: number of runs behind a mean.
        signed: whether this is a difference, displayed with its sign and an arrow.
        digits: digits after the decimal point.
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
        """Text of the value. The arrow follows the rounded value: a gain below the last digit counts as equal."""
        shown = round(self.value, self.digits) + 0.0  # no negative zero
        text = f"{shown:{'+' if self.signed and shown else ''}.{self.digits}f}"
        if self.signed:
            text += f" {UP if shown > 0 else DOWN if shown < 0 else SAME}"
        if self.deviation is not None:
            text += f" \N{PLUS-MINUS SIGN} {self.deviation:.{self.digits}f} ({self.runs})"
        return text

    @property
    def range(self) -> str:
        """Text of the interval, or ""; all digits for differences, where the side of zero matters."""
        if self.interval is None:
            return ""
        digits = self.digits if self.signed else 1
        ends = (round(end, digits) + 0.0 for end in self.interval)
        low, high = (f"{end:{'+' if self.signed and end else ''}.{digits}f}" for end in ends)
        return f"[{low}, {high}]"

    def data(self) -> dict[str, Any]:
        """Plain data; unknown fields are left out."""
        found: dict[str, Any] = {"value": self.value}
        if self.interval is not None:
            found |= {"low": self.interval[0], "high": self.interval[1]}
        if self.deviation is not None:
            found |= {"deviation": self.deviation, "runs": self.runs}
        return found


Cell = Number | str
"""A number or text; "" = blank."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with named columns.

    Attributes:
        key: name of its CSV file; unique in a report.
        title: caption.
        columns: column names.
        rows: rows with one cell per column.
        notes: notes below the table.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column contains numbers."""
        return tuple(any(isinstance(row[i], Number) for row in self.rows) for i in range(len(self.columns)))

    def markdown(self) -> str:
        """Pipe table followed by its notes."""
        align = ["right" if numeric else "left" for numeric in self.numeric]
        cells = [list(map(_piped, row)) for row in self.rows]
        head = list(map(_piped, self.columns))
        text = tabulate(cells, head, "pipe", disable_numparse=True, colalign=align if cells else None)
        return "\n".join([text, *(["", *(f"- {note}" for note in self.notes)] if self.notes else [])])

    def csv(self) -> str:
        """Unrounded numbers. Interval bounds, standard deviation and run count have their own columns, if any."""
        parts = [_parts([row[i] for row in self.rows]) for i in range(len(self.columns))]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        heads = [[name, *(f"{name} {part}" for part in more)] for name, more in zip(self.columns, parts, strict=True)]
        writer.writerow([name for group in heads for name in group])
        for row in self.rows:
            writer.writerow([v for cell, more in zip(row, parts, strict=True) for v in _values(cell, more)])
        return stream.getvalue()

    def data(self) -> dict[str, Any]:
        """Plain data: each row is a list of strings, null (blank) and mappings with "value"."""
        rows = [[cell.data() if isinstance(cell, Number) else cell or None for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "notes": list(self.notes)}


def _piped(cell: Cell) -> str:
    """Text of a cell on one line, with pipes escaped."""
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
    """A fraction as a number in percent; blank if it is None or NaN."""
    if share is None or math.isnan(share):
        return ""
    pair = (100 * interval[0], 100 * interval[1]) if interval is not None else None
    return Number(value=100 * share, interval=pair)


def count(number: float | None) -> Cell:
    """A whole number; blank if it is None or NaN."""
    return "" if number is None or math.isnan(number) else Number(value=number, digits=0)


def pooled(runs: Iterable[Run], which: str, split: str, task: str, metric: str, classes: Sequence[str] = ()) -> Cell:
    """A metric of one run with its interval, or its mean and standard deviation over several runs; blank if undefined.

    Args:
        runs: repetitions of one method.
        which: "student" or "teacher".
        split: registered split; runs that were not evaluated on it are left out.
        task: the task.
        metric: the metric.
        classes: classes to average over; empty = the dataset's own mean.
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
    """second - first, with an interval given in fractions; blank unless both are numbers."""
    if not isinstance(first, Number) or not isinstance(second, Number):
        return ""
    pair = (100 * interval[0], 100 * interval[1]) if interval is not None else None
    return Number(value=second.value - first.value, interval=pair, signed=True)
