"""Limit a dataset to some of its tasks and classes, as if the rest were not annotated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fx_d2.data.records import unknown_labels
from fx_d2.structures import TASKS, DatasetSpec, FXError


def narrow_rows(
    specs: Sequence[DatasetSpec], tasks: Collection[str], classes: Collection[str] = ()
) -> list[DatasetSpec]:
    """Limit dataset rows to some tasks and classes.

    Args:
        specs: dataset rows as in the annotation files.
        tasks: DATASETS.TASKS.
        classes: DATASETS.CLASSES; empty = all.

    Raises:
        FXError: an unknown task, a class that no row has for these tasks, a row with nothing left, or see
            `DatasetSpec.limited_to`.
    """
    strange = [task for task in tasks if task not in TASKS]
    if strange or not tasks:
        raise FXError(f"DATASETS.TASKS must name some of {list(TASKS)}, not {list(tasks)}")
    there = {task: {name for spec in specs for name in spec.classes(task)} for task in tasks}
    unknown = sorted(set(classes) - set().union(*there.values()))
    if unknown:
        raise FXError(
            f"DATASETS.CLASSES: no dataset has {unknown[0]!r} among its classes of {list(tasks)}; available: "
            f"{sorted(set().union(*there.values()))}"
        )
    for spec in specs:
        if not any(name in (classes or spec.classes(task)) for task in tasks for name in spec.classes(task)):
            raise FXError(
                f"dataset {spec.name!r} has none of DATASETS.TASKS {list(tasks)}"
                f"{f' and DATASETS.CLASSES {list(classes)}' if classes else ''}; it has "
                f"{ {task: list(spec.classes(task)) for task in spec.tasks} }"
            )
    return [spec.limited_to(tasks, classes) for spec in specs]


def narrow_records(records: list[dict[str, Any]], spec: DatasetSpec, used: DatasetSpec) -> list[dict[str, Any]]:
    """Limit the dicts of a split (see `annotations.load_split`) to the classes in use; modifies and returns the list.

    An image with boxes of other classes only remains annotated: it is a true negative for the classes in use.

    Args:
        records: dicts with all classes of `spec`.
        spec: the full row.
        used: the limited row, from `narrow_rows`.
    """
    kept = {task: [spec.classes(task).index(name) for name in used.classes(task)] for task in TASKS}
    columns = {old: new for new, old in enumerate(kept["loc"])}
    unknown = unknown_labels(spec)
    for record in records:
        labels, masks = record["labels"], record["masks"]
        record["labels"] = [labels[i] for i in kept["cls"]] if labels is not None and kept["cls"] else None
        record["masks"] = [masks[i] for i in kept["seg"]] if masks is not None and kept["seg"] else None
        record["annotations"] = [
            box | {"category_id": columns[box["category_id"]]}
            for box in record["annotations"]
            if box["category_id"] in columns
        ]
        record["annotated"] = {
            "cls": bool(set(record["labels"] or ()) - unknown),
            "loc": record["annotated"]["loc"] and bool(columns),
            "seg": any(mask is not None for mask in record["masks"] or ()),
        }
    return records
