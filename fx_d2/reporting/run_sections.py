"""Report sections of one run: training, classes, curves, subgroups, heads and protocol."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import yaml

from fx_d2.evaluation.report import HEADLINES, LABELS, REASONS
from fx_d2.reporting.baselines import title_of
from fx_d2.reporting.document import Section, slug
from fx_d2.reporting.plots import froc_plot, metric_plots, reliability_plot, training_plots
from fx_d2.reporting.recipe import at
from fx_d2.reporting.runs import Results, Run, dataset_of
from fx_d2.reporting.tables import Cell, Number, Table, count, percent
from fx_d2.structures import TASKS

_CLASS_METRICS = {
    "cls": ("auroc", "ap", "sensitivity", "op_sensitivity", "op_specificity", "ece"),
    "loc": ("AP40", "AP50", "AP", "froc"),
    "seg": ("dice", "dice_positives", "iou", "network_dice"),
}


def training_section(run: Run) -> Section:
    """Metrics over passes, losses, gradient norms, learning rate and step time."""
    curves = tuple(metric_plots(run.history, run.recipe.slots, run.recipe.passes, run.name))
    text = (
        "After every evaluated pass, on validation splits unless configured otherwise. Filled markers: the pass had "
        "trained on this dataset (focused); hollow markers: on another one (unfocused). A star marks the best value.",
    )
    times = _time_table(run)
    parts = (
        Section(key=slug(f"passes-{run.name}"), title="Metrics over passes", text=text if curves else (), plots=curves),
        Section(
            key=slug(f"losses-{run.name}"),
            title="Losses, gradient norms, learning rate, step time",
            tables=(times,) if times.rows else (),
            plots=tuple(training_plots(run.steps, run.recipe.slots, run.name)),
        ),
    )
    return Section(key=slug(f"training-{run.name}"), title="Training", parts=parts)


def _time_table(run: Run) -> Table:
    """Seconds per step by dataset and task, from the lines of metrics.json that time such a step."""
    found: dict[tuple[str, str], list[tuple[float, float | None]]] = defaultdict(list)
    for line in run.steps:
        for dataset, task in run.recipe.slots:
            slot = f"{dataset}/{task}"
            value = line.get(f"{slot}/step_time", line.get("time") if f"{slot}/total_loss" in line else None)
            if isinstance(value, int | float):
                found[dataset, task].append((value, line.get("data_time")))
    rows = []
    for dataset, task in sorted(found, key=lambda slot: TASKS.index(slot[1])):
        times = [value for value, _ in found[dataset, task]]
        waits = [wait for _, wait in found[dataset, task] if wait is not None]
        wait: Cell = Number(value=median(waits), digits=3) if waits else ""
        rows.append((title_of(dataset), task, count(len(times)), Number(value=median(times), digits=3), wait))
    return Table(
        key=slug(f"time-{run.name}"),
        title="Step time",
        columns=("dataset", "task", "samples", "seconds per step", "of which data loading"),
        rows=tuple(rows),
        notes=("medians over the samples in metrics.json",),
    )


def classes_section(run: Run, results: Results) -> Section:
    """A per-class table for each task; undefined classes are listed in its notes."""
    tables = []
    options = {"sensitivity": _specificity(results), "froc": _hit(results)}
    for task in TASKS:
        metrics = [m for m in _CLASS_METRICS[task] if any(f"/{task}/{m}/" in key for key in results.metrics)]
        rows, notes = [], ["in percent, [95 % interval by patient]; blank: undefined"]
        notes += [options[metric] for metric in metrics if options.get(metric)]
        for split in results.splits:
            for which in results.models:
                names = results.classes(which, split, task, HEADLINES[task][0]) if task in results.tasks(split) else []
                keys = [[f"{metric}/{name}" for metric in metrics] for name in names]
                for name, row in zip(names, keys, strict=True):
                    cells = [
                        percent(results.value(which, split, task, k), results.interval(which, split, task, k))
                        for k in row
                    ]
                    rows.append((title_of(dataset_of(split)), split.rpartition("_")[2], which, name, *cells))
                undefined = [n for n, k in zip(names, keys, strict=True) if _undefined(results, which, split, task, k)]
                if undefined:
                    notes.append(f"{split}, {which}: undefined ({REASONS[task]}), not in means: {', '.join(undefined)}")
        if rows:
            tables.append(
                Table(
                    key=slug(f"classes-{run.name}-{task}"),
                    title=f"Per class: {task}",
                    columns=("dataset", "split", "model", "class", *(LABELS[metric] for metric in metrics)),
                    rows=tuple(rows),
                    notes=tuple(notes),
                )
            )
    return Section(key=slug(f"classes-{run.name}"), title="Classes", tables=tuple(tables), folded=True)


def _undefined(results: Results, which: str, split: str, task: str, keys: Sequence[str]) -> bool:
    return math.isnan(results.value(which, split, task, keys[0]))


def _specificity(results: Results) -> str:
    """Note on the specificity of the reported sensitivity; "" if the config does not state it."""
    share = at(results.settings, "TEST", "SPECIFICITY")
    return f"sensitivity at a specificity of at least {100 * share:g} %" if share is not None else ""


def _hit(results: Results) -> str:
    """Note on which boxes are hits in FROC curves; "" if the config does not state it."""
    overlap = at(results.settings, "TEST", "FROC_IOU")
    return f"FROC: a hit has IoU >= {overlap:g}" if overlap is not None else ""


def curves_section(run: Run, results: Results) -> Section:
    """FROC curves and reliability diagrams of the first model."""
    which, froc, reliability = results.models[0], [], []
    for split, name in results.splits.items():
        boxes = results.details.get(f"{which}/{name}/loc", {}).get("froc")
        labels = results.details.get(f"{which}/{name}/cls", {}).get("reliability") or {}
        labels = {c: bins for c, bins in labels.items() if sum(bins["images"])}
        title = f"{title_of(dataset_of(split))}, {split.rpartition('_')[2]}"
        if boxes:
            froc.append(froc_plot(boxes, title, slug(f"froc-{run.name}-{split}")))
        if labels:
            reliability.append(reliability_plot(labels, title, slug(f"reliability-{run.name}-{split}")))
    hit = (_hit(results) + ".",) if froc and _hit(results) else ()
    points = ("Each point is a probability bin; its area grows with the fraction of the images in the bin.",)
    parts = (
        Section(key=slug(f"froc-{run.name}"), title=f"FROC curves ({which})", text=hit, plots=tuple(froc)),
        Section(
            key=slug(f"reliability-{run.name}"),
            title=f"Reliability ({which})",
            text=points if reliability else (),
            plots=tuple(reliability),
        ),
    )
    return Section(key=slug(f"curves-{run.name}"), title="Curves", parts=parts, folded=True)


def groups_section(run: Run, results: Results) -> Section:
    """Mean metrics in subgroups by sex, age and view."""
    metrics = [(task, HEADLINES[task][0]) for task in TASKS]
    rows = []
    for split, name in results.splits.items():
        for which in results.models:
            for group, found in results.subgroups.get(f"{which}/{name}", {}).items():
                values = [percent(found["metrics"].get(f"{task}/{metric}")) for task, metric in metrics]
                sizes = count(found["images"]), count(found["patients"])
                rows.append((title_of(dataset_of(split)), split.rpartition("_")[2], which, group, *sizes, *values))
    table = Table(
        key=slug(f"groups-{run.name}"),
        title="Subgroups by sex, age and view",
        columns=(
            "dataset",
            "split",
            "model",
            "subgroup",
            "images",
            "patients",
            *(LABELS[metric] for _, metric in metrics),
        ),
        rows=tuple(rows),
        notes=("small subgroups: before comparing means, check image counts, and in results.json the defined classes",),
    )
    key = slug(f"section-groups-{run.name}")
    return Section(key=key, title="Subgroups", tables=(table,) if rows else (), folded=True)


def heads_section(run: Run, results: Results) -> Section:
    """Predictions of the heads of other datasets on shared findings."""
    rows = []
    for split, name in results.splits.items():
        for which in results.models:
            for finding, entry in (results.details.get(f"{which}/{name}/heads") or {}).items():
                own = percent(entry["own_auroc"])
                for other, found in entry["heads"].items():
                    counts = [count(found[key]) for key in ("both", "own_only", "other_only", "neither")]
                    facts = title_of(dataset_of(split)), split.rpartition("_")[2], which, finding
                    rows.append(
                        (*facts, count(entry["images"]), own, title_of(other), percent(found["auroc"]), *counts)
                    )
    columns = ("dataset", "split", "model", "finding", "images", "own AUROC", "other head", "AUROC of other head")
    table = Table(
        key=slug(f"heads-{run.name}"),
        title="Heads of several datasets on shared findings",
        columns=(*columns, "both positive", "own only", "other only", "neither"),
        rows=tuple(rows),
        notes=("each head at its operating point, else at 0.5; AUROC against the labels of the images' own dataset",),
    )
    key = slug(f"section-heads-{run.name}")
    return Section(key=key, title="Heads on shared findings", tables=(table,) if rows else (), folded=True)


def protocol_section(run: Run) -> Section:
    """Where the results come from: files, hashes, versions, config."""
    facts = protocol(run)
    rows: list[tuple[Cell, ...]] = []
    for key, value in facts.items():
        entries = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [(" ".join((key, str(name))).strip(), str(entry)) for name, entry in entries]
    table = Table(key=slug(f"protocol-{run.name}"), title="Provenance", columns=("key", "value"), rows=tuple(rows))
    config = yaml.safe_dump(run.settings, sort_keys=True)
    part = Section(key=slug(f"config-{run.name}"), title="Config", code=config, folded=True)
    return Section(
        key=slug(f"section-protocol-{run.name}"), title="Protocol", tables=(table,), parts=(part,), folded=True
    )


def protocol(run: Run) -> dict[str, Any]:
    """Provenance of a run as plain data, without its config."""
    facts: dict[str, Any] = {"training": run.recipe.describe(), "seed": run.recipe.seed, "folder": str(run.folder)}
    if run.results is None:
        return facts | {"evaluation": "none yet"}
    meta = run.results.meta
    wanted = ("command", "time", "weights", "weights_hash", "splits", "minutes", "processes", "versions")
    facts |= {"evaluation": str(run.results.folder)}
    facts |= {key: meta[key] for key in wanted if key in meta}
    facts["splits"] = ", ".join(meta["splits"])
    return facts | {"dataset_hash": run.results.hashes}
