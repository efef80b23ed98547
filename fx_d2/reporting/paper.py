"""Numbers of a publication, to stand beside ours: a yaml file of tables."""

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
    """What is measured in one row, and what the publication found.

    Attributes:
        dataset: name of a row of the table of datasets.
        task: one of TASKS.
        metric: key of `results.json`.
        classes: classes whose mean it is; empty = the dataset's own mean.
        images: training images of a few-shot row, 0 = all.
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
    """One table of the publication.

    Attributes:
        key: its name in the file.
        title: its title.
        kind: one of KINDS: which of our runs belong into it.
        rows: in order.
        columns: column -> title, of those that its rows have.
    """

    key: str
    title: str
    kind: str
    rows: tuple[PaperRow, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


def read_paper(path: str | Path) -> tuple[PaperTable, ...]:
    """The tables of a file like projects/FoundationX/paper.yaml.

    Raises:
        FXError: the file is missing or something in it is not understood.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FXError(f"file of published numbers {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise FXError(f"{path} is not yaml: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) != {"columns", "tables"}:
        raise FXError(f"{path}: a file of published numbers has exactly the keys columns and tables")
    return tuple(_table(f"{path}: {key}", key, table, content["columns"]) for key, table in content["tables"].items())


def row_of(dataset: str, task: str, images: int = 0) -> PaperRow:
    """A row that no publication has: the task's first metric, the mean over the dataset's classes."""
    return PaperRow(dataset=dataset, task=task, metric=HEADLINES[task][0], images=images)


def _table(where: str, key: str, table: Mapping[str, Any], titles: Mapping[str, str]) -> PaperTable:
    if set(table) != {"title", "kind", "rows"} or table["kind"] not in KINDS:
        raise FXError(f"{where}: a table has exactly title, kind and rows, and a kind of {list(KINDS)}")
    rows = tuple(_row(where, row, titles) for row in table["rows"])
    found = {column for row in rows for column in row.numbers}
    columns = {column: title for column, title in titles.items() if column in found}
    return PaperTable(key=key, title=table["title"], kind=table["kind"], rows=rows, columns=columns)


def _row(where: str, row: Mapping[str, Any], titles: Mapping[str, str]) -> PaperRow:
    facts = {"dataset", "task", "metric", "classes", "images"}
    strange = sorted(set(row) - facts - set(titles))
    if strange or not {"dataset", "task"} <= set(row) or row["task"] not in TASKS:
        problem = f"unknown {strange}" if strange else f"dataset, or a task of {list(TASKS)}, is missing"
        raise FXError(f"{where}: row {dict(row)}: {problem}; columns are {list(titles)}")
    return PaperRow(
        dataset=row["dataset"],
        task=row["task"],
        metric=row.get("metric", HEADLINES[row["task"]][0]),
        classes=tuple(row.get("classes", ())),
        images=int(row.get("images", 0)),
        numbers={column: float(row[column]) for column in titles if column in row},
    )
