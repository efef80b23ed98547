"""One model for many datasets and tasks compared with single-task baselines: the pretraining and organs tables."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fx_d2.data.table import BY_NAME
from fx_d2.evaluation.report import LABELS, WHICH
from fx_d2.reporting.comparison import Comparer, same_split
from fx_d2.reporting.paper import PaperRow, PaperTable, row_of
from fx_d2.reporting.recipe import at
from fx_d2.reporting.runs import Results, Run
from fx_d2.reporting.tables import MEANS, Cell, Number, Table, count, difference, pooled
from fx_d2.structures import TASKS, FXError

logger = logging.getLogger(__name__)

OTHERS = "(another config, or weights that are already counted)"
"""Why a run is not averaged with the others of its cell, see `methods`."""


def title_of(dataset: str) -> str:
    """Title of a dataset in tables."""
    return BY_NAME[dataset].title if dataset in BY_NAME else dataset


def row_title(row: PaperRow) -> str:
    """Title of a table row: the dataset, and the classes if it is about some only."""
    return title_of(row.dataset) + (f": {', '.join(row.classes)}" if row.classes else "")


def classes_of(run: Run, row: PaperRow) -> tuple[str, ...]:
    """Classes of the row's dataset and task on which a run was evaluated."""
    split = same_split([run], row.dataset)
    if run.results is None or split is None:
        return ()
    return tuple(run.results.classes(run.results.models[0], split, row.task, row.metric))


def covers(run: Run, row: PaperRow) -> bool:
    """Whether a run was evaluated on the classes of a row, which without names are all classes of the dataset."""
    if row.classes:
        return set(row.classes) <= set(classes_of(run, row))
    limit = at(run.results.settings, "DATASETS", "CLASSES") if run.results is not None else None
    return not limit or (row.dataset in BY_NAME and set(BY_NAME[row.dataset].classes(row.task)) <= set(limit))


def methods(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs grouped by method: those that differ only in seeds together, equal weights evaluated again apart."""
    found: dict[tuple[str, int], list[Run]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for run in runs:
        known = run.results.meta["weights_hash"].values() if run.results is not None else ()
        weights = run.recipe.method, next(iter(known), run.name)
        found.setdefault((run.recipe.method, seen[weights]), []).append(run)
        seen[weights] += 1
    return list(found.values())


def is_joint(run: Run) -> bool:
    """Whether a run trained the full model on several datasets or tasks, on all images."""
    return len(run.recipe.slots) > 1 and not (run.recipe.heads_only or run.recipe.images)


def split_single(runs: Sequence[Run], paper: Sequence[PaperTable]) -> tuple[list[Run], list[Run]]:
    """Runs of one dataset and task, as (baselines, fine-tuning runs).

    The config of a fine-tuning run differs from a baseline's only in its initial weights. A baseline has no teacher and
    the initial weights of a joint run, ImageNet weights or random ones. If a slot (dataset, task) was fine-tuned, or a
    published table compares initial weights on it, its runs are all fine-tuning runs, unless a joint run has the slot.
    """
    joint = [run for run in runs if is_joint(run)]
    starts = {run.recipe.start for run in joint} | {"random", "ImageNet"}
    shared = {slot for run in joint for slot in run.recipe.slots}
    single = [run for run in runs if run.recipe.single]
    tuned = {run.recipe.slots[0] for run in single if run.recipe.start not in starts}
    tuned |= {(row.dataset, row.task) for table in paper if table.kind == "starts" for row in table.rows}

    def is_baseline(run: Run) -> bool:
        slot, recipe = run.recipe.slots[0], run.recipe
        return not recipe.teacher and recipe.start in starts and (slot in shared or slot not in tuned)

    baselines = [run for run in single if is_baseline(run)]
    return baselines, [run for run in single if run not in baselines]


def baseline_tables(runs: Sequence[Run], paper: Sequence[PaperTable], comparer: Comparer) -> list[Table]:
    """A table for each joint method, then one for the baselines that are in none of them."""
    joint = methods([run for run in runs if is_joint(run)])
    baselines, _ = split_single(runs, paper)
    published = [table for table in paper if table.kind == "baselines"]
    tables: list[Table] = []
    numbers: Counter[str] = Counter()
    shown: set[tuple[str, str]] = set()
    for group in [*joint, []]:
        order = dict.fromkeys(slot for run in group or baselines for slot in run.recipe.slots)
        trained = set(order) if group else set(order) - shown
        # What the paper reports and the runs lack stays in the table as blank cells.
        used = [table for table in published if any((row.dataset, row.task) in trained for row in table.rows)]
        trained -= {(row.dataset, row.task) for table in used for row in table.rows}
        if trained:
            rows = tuple(row_of(*slot) for slot in sorted(order, key=_by_task) if slot in trained)
            used.append(PaperTable(key="joint", title="Several datasets and tasks", kind="baselines", rows=rows))
        for table in used:
            tables.append(_table(table, group, baselines, comparer, numbers[table.key]))
            numbers[table.key] += 1
            shown |= {(row.dataset, row.task) for row in table.rows}
    return tables


def _by_task(slot: tuple[str, str]) -> int:
    return TASKS.index(slot[1])


def _table(paper: PaperTable, group: Sequence[Run], baselines: Sequence[Run], comparer: Comparer, number: int) -> Table:
    found = [run.results for run in group if run.results is not None]
    models = [which for which in WHICH if any(which in results.models for results in found)] or ["student"]
    columns = ["dataset", "metric", "split", "images", "baseline", *models, "difference"]
    published = list(paper.columns)
    columns += [f"paper: {paper.columns[name]}" for name in published]
    columns += ["paper: difference"] * (len(published) == 2)
    start = group[0].recipe.start if group else ""
    lines, others, elsewhere = [], [], []
    for row, joint, mine in _covered(paper, group, baselines):
        # If there are several methods, take the one with the initial weights of the joint run.
        kinds = methods(sorted(mine, key=lambda run: run.recipe.start != start))
        elsewhere += [run.name for kind in kinds[:1] for run in kind if group and run.recipe.start != start]
        others += [run.name for kind in kinds[1:] for run in kind]
        lines.append(_line(row, joint, kinds[0] if kinds else [], models, published, comparer))
    cells = [cell for line in lines for cell in line if isinstance(cell, Number)]
    notes = [MEANS] * any(cell.deviation is not None for cell in cells)
    notes += [f"baselines with other initial weights: {', '.join(dict.fromkeys(elsewhere))}"] * bool(elsewhere)
    notes += [f"baselines left out {OTHERS}: {', '.join(dict.fromkeys(others))}"] * bool(others)
    name = " and ".join(run.name for run in group) or "baselines only"
    return Table(
        key=paper.key if not number else f"{paper.key}_{number + 1}",
        title=f"{paper.title}: {name}",
        columns=tuple(columns),
        rows=tuple(lines),
        notes=(*_notes(group, baselines, published), *notes),
    )


def _covered(
    paper: PaperTable, group: Sequence[Run], baselines: Sequence[Run]
) -> Iterator[tuple[PaperRow, list[Run], list[Run]]]:
    """Each row with the joint runs and the baselines that cover it.

    A row that some run misses because of DATASETS.CLASSES is followed by one for the classes of that run.
    """
    for row in paper.rows:
        mine = [run for run in baselines if run.recipe.slots == ((row.dataset, row.task),)]
        missing = (
            {} if row.classes else dict.fromkeys(classes_of(r, row) for r in (*group, *mine) if not covers(r, row))
        )
        rows = [row, *(replace(row, classes=classes, numbers={}) for classes in missing if classes)]
        for each in rows:
            covering = [run for run in group if covers(run, each)], [run for run in mine if covers(run, each)]
            if any(covering) or each.numbers or len(rows) == 1:
                yield each, *covering


def _line(
    row: PaperRow,
    group: Sequence[Run],
    baseline: Sequence[Run],
    models: Sequence[str],
    published: Sequence[str],
    comparer: Comparer,
) -> tuple[Cell, ...]:
    split = same_split([*group, *baseline], row.dataset) or ""
    what = (split, row.task, row.metric, row.classes)
    first = pooled(baseline, "student", *what)
    ours = [pooled(group, which, *what) for which in models]
    images = _images([run.results for run in (*baseline, *group) if run.results is not None], split, row.task)
    interval = None
    if len(group) == 1 and len(baseline) == 1 and first and ours[0] and len(row.classes) < 2:
        sides = (baseline[0], "student"), (group[0], models[0])
        name = "/".join((row.task, row.metric, *row.classes))
        try:
            pair = comparer.on_split(*sides, split).get(name)
            interval = pair.interval if pair is not None else None
        except FXError as error:  # other classes or images: the table shows both values, but no interval
            logger.warning("%s, %s: no interval for the difference: %s", row_title(row), LABELS[row.metric], error)
    numbers: list[Cell] = [Number(value=row.numbers[name]) if name in row.numbers else "" for name in published]
    if len(published) == 2:
        numbers.append(difference(numbers[0], numbers[1]))
    dataset, label = row_title(row), LABELS[row.metric]
    kind = split.rpartition("_")[2]
    return (dataset, label, kind, images, first, *ours, difference(first, ours[0], interval), *numbers)


def _images(results: Sequence[Results], split: str, task: str) -> Cell:
    """Number of annotated images; all counts if the evaluations differ (DATASETS.LIMIT)."""
    found = dict.fromkeys(each.value(each.models[0], split, task, "images") for each in results)
    known = [number for number in found if not math.isnan(number)]
    return count(known[0]) if len(known) == 1 else " / ".join(f"{number:.0f}" for number in known)


def _notes(group: Sequence[Run], baselines: Sequence[Run], published: Sequence[str]) -> list[str]:
    notes = [
        "in percent, [95 % interval by patient, if at least 90 % of the bootstrap resamples define the metric]; "
        "blank: not trained, not evaluated, or undefined",
        "difference: first model column minus baseline",
    ]
    if len(group) == 1 and baselines:
        notes.append("intervals of differences use the same bootstrap resamples of patients for both models")
    if published:
        notes.append("paper columns: as published, on the authors' own splits; ours are on the split named in the row")
    return notes
