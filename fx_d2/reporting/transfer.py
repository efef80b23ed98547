"""Transfer from several initial weights: fine-tuning, few-shot, and heads only compared with the full model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fx_d2.evaluation.report import LABELS
from fx_d2.reporting.baselines import OTHERS, classes_of, covers, methods, row_title, split_single
from fx_d2.reporting.comparison import same_split
from fx_d2.reporting.paper import PaperRow, PaperTable, row_of
from fx_d2.reporting.runs import Run
from fx_d2.reporting.tables import MEANS, Cell, Number, Table, difference, pooled

_NOTE = f"in percent; {MEANS}; single run: 95 % interval by patient; student only, if there are two models"


def is_few_shot(run: Run) -> bool:
    """Whether a run belongs in the few-shot table: a few training images of one dataset."""
    return bool(run.recipe.images) and len(run.recipe.datasets) == 1


def transfer_tables(runs: Sequence[Run], paper: Sequence[PaperTable]) -> list[Table]:
    """Tables of the kinds "starts", "few_shot" and "heads" for which there are runs."""
    _, tuned = split_single(runs, paper)
    heads = [run for run in runs if run.recipe.heads_only and not run.recipe.images]
    few = [run for run in runs if is_few_shot(run)]
    found = []
    if tuned:
        found.append(_by_start(_published(paper, "starts", "fine_tuning", "Fine-tuning"), tuned))
    if few:
        found.append(_by_start(_published(paper, "few_shot", "few_shot", "Few-shot"), few))
    for number, start in enumerate(dict.fromkeys(run.recipe.start for run in heads)):
        table = _published(paper, "heads", "heads_only", "Heads only against full fine-tuning")
        found.append(_heads(table, start, heads, runs, number))
    return found


def _published(paper: Sequence[PaperTable], kind: str, key: str, title: str) -> PaperTable:
    return next((table for table in paper if table.kind == kind), PaperTable(key=key, title=title, kind=kind))


def _label(run: Run) -> str:
    return f"from {run.recipe.start}" + ", heads only" * run.recipe.heads_only + ", teacher" * run.recipe.teacher


def _by_start(paper: PaperTable, runs: Sequence[Run]) -> Table:
    """One column per set of initial weights; for few-shot runs, one row per number of training images."""
    labels = list(dict.fromkeys(_label(run) for run in runs))
    rows = _rows(paper, runs)
    published = _columns(paper, rows)
    lines, others = [], []
    for row in rows:
        # A series with one run per class: only runs evaluated on the classes of a row compete in it.
        mine = [run for run in runs if _in(run, row) and covers(run, row)]
        cells: list[Cell] = []
        for label in labels:
            kinds = methods([run for run in mine if _label(run) == label])
            cells.append(_value(kinds[0] if kinds else [], row, mine))
            others += [run.name for kind in kinds[1:] for run in kind]
        numbers = [Number(value=row.numbers[name]) if name in row.numbers else "" for name in published]
        lines.append((*_facts(row, mine), *([str(row.images)] if row.images else []), *cells, *numbers))
    few = ("training images",) if any(run.recipe.images for run in runs) else ()
    columns = ("dataset", "task", "metric", "split", *few, *labels, *(f"paper: {paper.columns[n]}" for n in published))
    return Table(key=paper.key, title=paper.title, columns=columns, rows=tuple(lines), notes=_notes(others))


def _notes(others: Sequence[str]) -> tuple[str, ...]:
    return (_NOTE, *[f"left out {OTHERS}: {', '.join(dict.fromkeys(others))}"] * bool(others))


def _rows(paper: PaperTable, runs: Sequence[Run]) -> list[PaperRow]:
    """The published rows of the (dataset, task) slots of the runs, and rows for classes that only the runs have."""
    rows = _rows_of_slots(paper, runs)
    for run in runs:
        for dataset, task in run.recipe.slots:
            mine = [row for row in rows if (row.dataset, row.task, row.images) == (dataset, task, run.recipe.images)]
            classes = classes_of(run, mine[0])
            if classes and not any(covers(run, row) for row in mine):
                rows.append(replace(mine[0], classes=classes, numbers={}))
    rows = [row for row in rows if row.numbers or any(_in(run, row) and covers(run, row) for run in runs)]
    slots = list(dict.fromkeys(slot for run in runs for slot in run.recipe.slots))
    return sorted(rows, key=lambda row: (slots.index((row.dataset, row.task)), -row.images))


def _in(run: Run, row: PaperRow) -> bool:
    """Whether a run trained the row's dataset and task, on as many images."""
    return (row.dataset, row.task) in run.recipe.slots and run.recipe.images == row.images


def _rows_of_slots(paper: PaperTable, runs: Sequence[Run]) -> list[PaperRow]:
    """The published rows of the slots of the runs, plus like rows for image counts that were not published."""
    there = dict.fromkeys((*slot, run.recipe.images) for run in runs for slot in run.recipe.slots)
    slots = list(dict.fromkeys(key[:2] for key in there))
    rows = [row for row in paper.rows if (row.dataset, row.task) in slots]
    for dataset, task, images in there:
        like = [row for row in rows if (row.dataset, row.task) == (dataset, task)]
        if all(row.images != images for row in like):
            kinds = dict.fromkeys((row.metric, row.classes) for row in like)
            fresh = row_of(dataset, task, images)
            rows += [
                PaperRow(dataset=dataset, task=task, metric=metric, classes=classes, images=images)
                for metric, classes in kinds or [(fresh.metric, fresh.classes)]
            ]
    return rows


def _heads(paper: PaperTable, start: str, heads: Sequence[Run], runs: Sequence[Run], number: int) -> Table:
    """Heads only and full fine-tuning from one set of initial weights, one row per slot."""
    mine = [run for run in heads if run.recipe.start == start]
    single = [run for run in runs if run.recipe.single]
    # Full runs from the initial weights of any heads-only run are fine-tuning runs, not baselines.
    starts = {run.recipe.start for run in heads}
    rows = _rows(paper, mine)
    published = _columns(paper, rows)
    lines, others = [], []
    for row in rows:
        slot = (row.dataset, row.task)
        here = [run for run in mine if slot in run.recipe.slots and covers(run, row)]
        same = [run for run in single if run.recipe.slots == (slot,) and covers(run, row)]
        full = [run for run in same if run.recipe.start == start]
        fresh = [run for run in same if run.recipe.start not in starts and not run.recipe.teacher]
        cells: list[Cell] = []
        for group in (fresh, here, full):
            kinds = methods(group)
            cells.append(_value(kinds[0] if kinds else [], row, [*here, *full]))
            others += [run.name for kind in kinds[1:] for run in kind]
        numbers = [Number(value=row.numbers[name]) if name in row.numbers else "" for name in published]
        lines.append((*_facts(row, [*here, *full]), *cells, difference(cells[1], cells[2]), *numbers))
    columns = ("dataset", "task", "metric", "split", "baseline", "heads only", "full", "full - heads only")
    return Table(
        key=paper.key if not number else f"{paper.key}_{number + 1}",
        title=f"{paper.title}, from {start}",
        columns=(*columns, *(f"paper: {paper.columns[name]}" for name in published)),
        rows=tuple(lines),
        notes=_notes(others),
    )


def _columns(paper: PaperTable, rows: Sequence[PaperRow]) -> list[str]:
    """The published columns with a value in at least one of the rows."""
    return [name for name in paper.columns if any(name in row.numbers for row in rows)]


def _facts(row: PaperRow, runs: Sequence[Run]) -> tuple[str, ...]:
    split = same_split(runs, row.dataset) or ""
    return row_title(row), row.task, LABELS[row.metric], split.rpartition("_")[2]


def _value(runs: Sequence[Run], row: PaperRow, beside: Sequence[Run]) -> Cell:
    """Cell of the repetitions of one method, on the split on which all runs of the row are compared."""
    split = same_split(beside, row.dataset)
    models = [run.results.models[0] for run in runs if run.results is not None]
    return pooled(runs, models[0], split, row.task, row.metric, row.classes) if split and models else ""
