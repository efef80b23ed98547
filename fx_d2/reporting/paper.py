"""Published results to report next to ours, from a YAML file of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fx_d2.evaluation.report import HEADLINES
from fx_d2.structures import TASKS, FXError

KINDS = ("baselines", "starts", "few_shot", "heads")


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """What one table row measures, and the published values.

    Attributes:
        dataset: name of a dataset row (`DatasetSpec`).
        task: one of TASKS.
        metric: name of the metric in `results.json`.
        classes: classes over which the metric is averaged; empty = the dataset's own mean.
        images: training images of a few-shot row; 0 = all.
        numbers: column -> percent.
    """

    dataset: str
    task: str
    metric: str
    classes: tuple[str, ...] = ()
    images: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One published table.

    Attributes:
        key: name of the table in the file.
        title: heading.
        kind: one of KINDS; selects which of our runs go into the table.
        rows: rows in order.
        columns: column -> title, for the columns with a value in some row.
    """

    key: str
    title: str
    kind: str
    rows: tuple[PaperRow, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


def read_paper(path: str | Path) -> tuple[PaperTable, ...]:
    """Read the tables of a file such as projects/FoundationX/paper.yaml.

    Raises:
        FXError: the file is missing or invalid, or has two tables of one kind other than "baselines".
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FXError(f"published results {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FXError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) != {"columns", "tables"}:
        raise FXError(f"{path}: a file of published results has exactly the keys columns and tables")
    if not all(isinstance(part, dict) for part in content.values()):
        raise FXError(f"{path}: columns and tables are mappings from keys to titles and to tables")
    tables = tuple(_table(f"{path}: {key}", key, table, content["columns"]) for key, table in content["tables"].items())
    kinds = [table.kind for table in tables if table.kind != KINDS[0]]
    if twice := [table.key for table in tables if kinds.count(table.kind) > 1]:
        raise FXError(f"{path}: {' and '.join(twice)} have the same kind: put all rows into one table")
    return tables


def row_of(dataset: str, task: str, images: int = 0) -> PaperRow:
    """A row without published values: the headline metric of the task, averaged over the dataset's classes."""
    return PaperRow(dataset=dataset, task=task, metric=HEADLINES[task][0], images=images)


def _table(where: str, key: str, table: Any, titles: Mapping[str, str]) -> PaperTable:
    if not isinstance(table, dict) or set(table) != {"title", "kind", "rows"} or table["kind"] not in KINDS:
        raise FXError(f"{where}: a table has exactly title, kind and rows, and its kind is one of {list(KINDS)}")
    if not isinstance(table["rows"], list) or not all(isinstance(row, dict) for row in table["rows"]):
        raise FXError(f"{where}: rows is a list of mappings")
    rows = tuple(_row(where, row, titles) for row in table["rows"])
    found = {column for row in rows for column in row.numbers}
    columns = {column: title for column, title in titles.items() if column in found}
    return PaperTable(key=key, title=table["title"], kind=table["kind"], rows=rows, columns=columns)


def _row(where: str, row: Mapping[str, Any], titles: Mapping[str, str]) -> PaperRow:
    facts = {"dataset", "task", "metric", "classes", "images"}
    strange = sorted(set(row) - facts - set(titles))
    if strange or not {"dataset", "task"} <= set(row) or row["task"] not in TASKS:
        problem = f"unknown {strange}" if strange else f"needs a dataset, and a task of {list(TASKS)}"
        raise FXError(f"{where}: row {dict(row)}: {problem}; columns are {list(titles)}")
    metric, numbers = row.get("metric", HEADLINES[row["task"]][0]), {c: row[c] for c in titles if c in row}
    if metric not in HEADLINES[row["task"]]:
        raise FXError(f"{where}: row {dict(row)}: no metric {metric}; metrics: {', '.join(HEADLINES[row['task']])}")
    if not all(isinstance(value, int | float) for value in (row.get("images", 0), *numbers.values())):
        raise FXError(f"{where}: row {dict(row)}: images and the columns are numbers, the latter in percent")
    if not isinstance(row.get("classes", []), list):
        raise FXError(f"{where}: row {dict(row)}: classes is a list of names")
    return PaperRow(
        dataset=row["dataset"],
        task=row["task"],
        metric=metric,
        classes=tuple(row.get("classes", ())),
        images=int(row.get("images", 0)),
        numbers={column: float(value) for column, value in numbers.items()},
    )
