"""The results of an evaluation as a Markdown report and as JSON (docs/results.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tabulate import tabulate  # type: ignore[import-untyped]

from fx_d2.evaluation.classification import ClassificationEvaluator
from fx_d2.evaluation.common import plain
from fx_d2.evaluation.evaluator import Evaluation
from fx_d2.evaluation.localization import LocalizationEvaluator
from fx_d2.evaluation.segmentation import SegmentationEvaluator
from fx_d2.files import write_atomic
from fx_d2.structures import SPLITS, TASKS, DatasetSpec

FORMAT = "fx_d2_results"
VERSION = 2

HEADLINES = {
    "cls": ("auroc", "auroc_published", "ap", "sensitivity", "op_sensitivity", "op_specificity", "ece"),
    "loc": ("AP40", "AP50", "AP", "AR100", "froc"),
    "seg": ("dice", "dice_positives", "iou", "network_dice", "network_dice_positives"),
}
"""Metrics of the results table, per task; the first is the headline, also reported per class."""

LABELS = {
    "auroc": "AUROC",
    "auroc_published": "AUROC, published classes",
    "ap": "average precision",
    "sensitivity": "sensitivity at fixed specificity",
    "op_sensitivity": "sensitivity at operating points",
    "op_specificity": "specificity at operating points",
    "ece": "calibration error",
    "AP40": "AP40",
    "AP50": "AP50",
    "AP": "AP (.50:.95)",
    "AR100": "AR100 (.50:.95)",
    "froc": "FROC, mean sensitivity",
    "dice": "Dice",
    "dice_positives": "Dice, positives",
    "iou": "IoU",
    "network_dice": "Dice, network pixels",
    "network_dice_positives": "Dice, network pixels, positives",
}

WHICH = ("student", "teacher")

REASONS = {
    each.task: each.undefined for each in (ClassificationEvaluator, LocalizationEvaluator, SegmentationEvaluator)
}
"""What a class lacks whose headline metric is undefined."""

NOTICE = "Research use only; not for clinical decisions."


def results_table(
    metrics: Mapping[str, float],
    specs: Iterable[DatasetSpec],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """The results table: a row per dataset, task and headline metric, a column per model, in percent.

    Missing and undefined values are blank. Footnotes name the undefined classes, which are left out of the means.

    Args:
        metrics: flat "{which}/{dataset}/{task}/{metric}" -> fraction, as `evaluate_model` returns them.
        specs: dataset rows (`DatasetSpec`) in the order of the table; other datasets of the metrics come last.
        intervals: 95 % intervals by the key of their metric, shown after the values.
    """
    specs = tuple(specs)
    which, intervals = _models(metrics), intervals or {}
    rows = []
    for dataset, task in _slots(metrics, specs):
        for name in HEADLINES[task]:
            keys = [f"{w}/{dataset}/{task}/{name}" for w in which]
            if any(key in metrics for key in keys):
                values = [_percent(metrics.get(key), intervals.get(key)) for key in keys]
                images = _first(metrics.get(f"{w}/{dataset}/{task}/images") for w in which)
                count = "" if images is None else f"{images:.0f}"
                rows.append([_title(dataset, specs), task, count, LABELS[name], *values])
    table = _render(rows, ["dataset", "task", "images", "metric", *which], len(which))
    notes = _footnotes(metrics, specs)
    return "\n".join([table, "", *notes]) if notes else table


def per_class_table(metrics: Mapping[str, float], specs: Iterable[DatasetSpec]) -> str:
    """The headline metric of each task per class, in percent; blank = undefined. Arguments as in `results_table`."""
    specs = tuple(specs)
    which = _models(metrics)
    rows = []
    for dataset, task in _slots(metrics, specs):
        name = HEADLINES[task][0]
        for label in _classes(metrics, dataset, task):
            values = [metrics.get(f"{w}/{dataset}/{task}/{name}/{label}") for w in which]
            rows.append([_title(dataset, specs), task, LABELS[name], label, *map(_percent, values)])
    return _render(rows, ["dataset", "task", "metric", "class", *which], len(which))


def write_results(
    path: str | Path,
    evaluation: Evaluation,
    meta: Mapping[str, Any],
    specs: Iterable[DatasetSpec] = (),
) -> Path:
    """Write an evaluation as JSON (NaN as null) and as a Markdown report next to it; both atomically.

    Args:
        path: the JSON file; its folder is created. The report has the suffix .md.
        evaluation: as `evaluate_model` returns it.
        meta: provenance as plain data: config, hashes of weights and datasets, splits, time, versions.
        specs: dataset rows (`DatasetSpec`) for titles and order in the report.

    Returns:
        The path of the report.
    """
    path, specs = Path(path), tuple(specs)
    found = {entry.name: plain(getattr(evaluation, entry.name)) for entry in fields(evaluation)}
    content = {"format": FORMAT, "version": VERSION, "meta": dict(meta), **found}
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False, default=str) + "\n")
    report = path.with_suffix(".md")
    write_atomic(report, _markdown(evaluation, meta, specs))
    return report


def _markdown(evaluation: Evaluation, meta: Mapping[str, Any], specs: tuple[DatasetSpec, ...]) -> str:
    origin = [[key, str(value)] for key, value in meta.items() if key != "config"]
    metrics = evaluation.metrics
    parts = [
        "# Results",
        f"{NOTICE} Values in percent, with 95 % bootstrap intervals by patient.",
        results_table(metrics, specs, evaluation.intervals),
        "## Per class",
        per_class_table(metrics, specs),
        "## Provenance",
        _render(origin, ["", "value"], 0),
        "## Config",
        "\n".join(f"    {line}" for line in str(meta.get("config", "")).splitlines()),
    ]
    return "\n\n".join(parts) + "\n"


def _render(rows: list[list[str]], headers: list[str], numeric: int) -> str:
    """A Markdown pipe table; the last `numeric` columns are right-aligned."""
    align = ["left"] * (len(headers) - numeric) + ["right"] * numeric
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)


def _percent(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None or math.isnan(value):
        return ""
    shown = f"{100 * value:.2f}"
    if interval is None or math.isnan(interval[0]):
        return shown
    return f"{shown} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _first(values: Iterable[float | None]) -> float | None:
    return next((v for v in values if v is not None), None)


def _models(metrics: Mapping[str, float]) -> list[str]:
    """The models in the metrics, student first."""
    found = list(dict.fromkeys(key.split("/", 1)[0] for key in metrics))
    return sorted(found, key=lambda w: WHICH.index(w) if w in WHICH else len(WHICH))


def _slots(metrics: Mapping[str, float], specs: tuple[DatasetSpec, ...]) -> list[tuple[str, str]]:
    """Pairs (dataset, task) in the metrics, in the order of `specs` and of TASKS."""
    order = [name for spec in specs for name in (spec.name, *(f"{spec.name}_{split}" for split in SPLITS))]
    found = {(key.split("/")[1], key.split("/")[2]) for key in metrics}
    strangers = sorted({dataset for dataset, _ in found} - set(order))
    return [(d, t) for d in [*order, *strangers] for t in TASKS if (d, t) in found]


def _title(dataset: str, specs: tuple[DatasetSpec, ...]) -> str:
    """Title of a dataset, or of one split of it, in a report."""
    for spec in specs:
        for key, title in [(spec.name, spec.title), *((f"{spec.name}_{s}", f"{spec.title} ({s})") for s in SPLITS)]:
            if key == dataset:
                return title
    return dataset


def _classes(metrics: Mapping[str, float], dataset: str, task: str) -> list[str]:
    """Classes with an entry for the headline metric of the task, in the order of evaluation."""
    tail = f"/{dataset}/{task}/{HEADLINES[task][0]}/"
    return list(dict.fromkeys(key.split(tail, 1)[1] for key in metrics if tail in key))


def _footnotes(metrics: Mapping[str, float], specs: tuple[DatasetSpec, ...]) -> list[str]:
    """One note per dataset and task that has undefined classes."""
    which, notes = _models(metrics), []
    for dataset, task in _slots(metrics, specs):
        name = HEADLINES[task][0]
        keys = {c: [f"{w}/{dataset}/{task}/{name}/{c}" for w in which] for c in _classes(metrics, dataset, task)}
        undefined = [c for c, ks in keys.items() if any(math.isnan(metrics.get(k, 0.0)) for k in ks)]
        if undefined:
            listed = ", ".join(undefined)
            notes.append(f"- {_title(dataset, specs)}, {task}: undefined ({REASONS[task]}), not in the mean: {listed}")
    return notes
