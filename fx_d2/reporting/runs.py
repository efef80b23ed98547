"""Reading the output folders of training and evaluation runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fx_d2.engine.evaluations import FILE_NAME as EVALUATIONS
from fx_d2.evaluation.report import FORMAT, VERSION
from fx_d2.reporting.recipe import Recipe
from fx_d2.structures import TASKS, FXError

RESULTS, STEPS, CONFIG = "results.json", "metrics.json", "config.yaml"

TEST = "test"
"""Subfolder of a run that is searched for an evaluation of its weights on test splits."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """An evaluation as stored in results.json (docs/results.md); undefined values are None.

    Attributes:
        folder: folder of the file, and of its scores and predictions files.
        meta: provenance.
        metrics: "<model>/<name>/<task>/<metric>" -> fraction.
        intervals: the same keys -> [low, high].
        details: curves and tables.
        subgroups: metrics of subgroups.
        scores: "<model>/<name>" -> scores file.
    """

    folder: Path
    meta: dict[str, Any]
    metrics: dict[str, float | None]
    intervals: dict[str, list[float | None]]
    details: dict[str, Any]
    subgroups: dict[str, Any]
    scores: dict[str, str]

    @cached_property
    def splits(self) -> dict[str, str]:
        """Registered split -> name in the keys of its metrics: the dataset, if only one of its splits was evaluated."""
        splits = self.meta["splits"]
        count = Counter(dataset_of(split) for split in splits)
        return {split: dataset_of(split) if count[dataset_of(split)] == 1 else split for split in splits}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Config of the evaluation as plain data."""
        return yaml.safe_load(self.meta["config"]) or {}

    @property
    def models(self) -> list[str]:
        """The evaluated models: "student", "teacher" or both."""
        return list(dict.fromkeys(key.split("/", 1)[0] for key in self.metrics))

    @property
    def hashes(self) -> dict[str, str]:
        """Registered split -> hash of its annotation file."""
        return {split: row["content_hash"] for split, row in self.meta["datasets"].items()}

    def tasks(self, split: str) -> list[str]:
        """Tasks that were evaluated on a split."""
        name = self.splits[split]
        found = {key.split("/")[2] for key in self.metrics if key.split("/")[1] == name}
        return [task for task in TASKS if task in found]

    def value(self, which: str, split: str, task: str, metric: str) -> float:
        """A metric as a fraction; NaN if it is undefined or missing."""
        name = self.splits.get(split)
        value = self.metrics.get(f"{which}/{name}/{task}/{metric}") if name else None
        return math.nan if value is None else value

    def interval(self, which: str, split: str, task: str, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric, if it has one."""
        pair = self.intervals.get(f"{which}/{self.splits.get(split)}/{task}/{metric}")
        return None if pair is None or pair[0] is None or pair[1] is None else (pair[0], pair[1])

    def classes(self, which: str, split: str, task: str, metric: str) -> list[str]:
        """Classes with an entry for the metric, in the order of evaluation."""
        head = f"{which}/{self.splits[split]}/{task}/{metric}/"
        return [key.removeprefix(head) for key in self.metrics if key.startswith(head)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run, its evaluation, or both.

    Attributes:
        name: short and unique in a report.
        folder: path as given by the user.
        recipe: what was trained.
        settings: config of the training run, or of the evaluation if the training run is not available.
        results: on test splits if they were evaluated, else on validation splits; None = not evaluated yet.
        history: lines of evaluations.jsonl.
        steps: lines of metrics.json.
    """

    name: str
    folder: Path
    recipe: Recipe
    settings: dict[str, Any]
    results: Results | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)


def dataset_of(split: str) -> str:
    """Dataset of a registered split: "jsrt" for "jsrt_test"."""
    return split.rpartition("_")[0]


def read_runs(arguments: Sequence[str]) -> tuple[Run, ...]:
    """The runs given by arguments "PATH" or "NAME=PATH"; a folder of runs stands for all of them.

    A path is the OUTPUT_DIR of a training run or of an evaluation. The evaluation of a training run is read from its
    subfolder `test` if there is one. The training run of an evaluation is the one that wrote its weights, if it still
    exists.

    Raises:
        FXError: a path has no run, a name is given twice, results have another version, or two runs were evaluated on
            different annotations of the same split.
    """
    named = [pair for argument in arguments for pair in _expand(argument)]
    names = _names(named)
    runs = tuple(_read(name, path) for name, (_, path) in zip(names, named, strict=True))
    check_same_data(runs)
    return runs


def check_same_data(runs: Iterable[Run]) -> None:
    """Raise FXError if two runs were evaluated on different annotation files of one split."""
    seen: dict[str, tuple[str, str]] = {}
    for run in runs:
        for split, digest in (run.results.hashes if run.results else {}).items():
            name, other = seen.setdefault(split, (run.name, digest))
            if other != digest:
                raise FXError(
                    f"{run.name} and {name} were evaluated on different annotations of {split} "
                    f"({digest[:15]} and {other[:15]}): evaluate both on the same prepared dataset"
                )


def _expand(argument: str) -> list[tuple[str, Path]]:
    name, separator, text = argument.partition("=")
    # A path may contain "=", a name no "/".
    named = separator and "/" not in name and not Path(argument).exists()
    name, path = (name, Path(text)) if named else ("", Path(argument))
    if _is_run(path):
        return [(name, path)]
    inside = sorted(child for child in path.iterdir() if _is_run(child)) if path.is_dir() else []
    if not inside:
        raise FXError(
            f"{path} is not a run: neither it nor a subfolder contains {RESULTS}, {STEPS} or {EVALUATIONS}; give the "
            "OUTPUT_DIR of a training run or of an evaluation"
        )
    return [(f"{name}/{child.name}" if name else "", child) for child in inside]


def _is_run(path: Path) -> bool:
    return any((path / file).is_file() for file in (RESULTS, STEPS, EVALUATIONS))


def _names(named: Sequence[tuple[str, Path]]) -> list[str]:
    """Names as given, else the shortest path suffixes that are unique."""
    paths = list(dict.fromkeys(path.resolve() for _, path in named))
    if len(paths) < len(named):
        twice = next(path for _, path in named if [p.resolve() for _, p in named].count(path.resolve()) > 1)
        raise FXError(f"{twice} is given twice")
    depth = max(len(path.parts) for path in paths)
    for length in range(1, depth + 1):
        names = [name or "/".join(path.resolve().parts[-length:]) for name, path in named]
        if len(set(names)) == len(names):
            return names
    raise FXError(f"two runs are named {Counter(names).most_common(1)[0][0]!r}: give other names, NAME=PATH")


def _read(name: str, path: Path) -> Run:
    results = _read_results(path)
    training: Path | None = path if (path / STEPS).is_file() or (path / EVALUATIONS).is_file() else None
    if training is not None:
        results = _read_results(path / TEST) or results
    elif results is not None and results.meta.get("weights"):
        origin = Path(results.meta["weights"]).parent
        training = origin if (origin / STEPS).is_file() else None
    history = _read_lines(training / EVALUATIONS) if training else []
    settings = _read_settings(training or path, results)
    return Run(
        name=name,
        folder=path,
        recipe=Recipe.from_settings(settings, _tasks_of(results, history)),
        settings=settings,
        results=results,
        history=history,
        steps=_read_lines(training / STEPS) if training else [],
    )


def _read_results(folder: Path) -> Results | None:
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise FXError(f"{path} is not JSON: evaluate again to write it") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FXError(f"{path} is not an fx_d2 results file: give the OUTPUT_DIR of a training run or an evaluation")
    if content.get("version") != VERSION:
        raise FXError(f"{path} has version {content.get('version')}, not {VERSION}: evaluate again to write it")
    keys = ("meta", "metrics", "intervals", "details", "subgroups", "scores")
    missing = [key for key in keys if not isinstance(content.get(key), dict)]
    if missing:
        raise FXError(f"{path} has no {', '.join(missing)}: evaluate again to write it")
    return Results(folder=folder, **{key: content[key] for key in keys})


def _read_settings(folder: Path, results: Results | None) -> dict[str, Any]:
    path = folder / CONFIG
    stored = results.meta.get("config", "") if results else ""
    where = str(path) if path.is_file() or not results else f"meta.config of {results.folder / RESULTS}"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8") if path.is_file() else str(stored))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FXError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise FXError(f"{folder}: no config found ({where} is missing or empty)")
    return settings


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a JSON Lines file; a last line that is incomplete (a killed run) is ignored."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise FXError(f"{path}, line {number}: not JSON") from None
    return found


def _tasks_of(results: Results | None, history: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Tasks of each dataset that were evaluated."""
    found: dict[str, set[str]] = {}
    if results is not None:
        for split in results.splits:
            found.setdefault(dataset_of(split), set()).update(results.tasks(split))
    for line in history[:1]:
        for key in line["metrics"]:
            found.setdefault(key.split("/")[1], set()).add(key.split("/")[2])
    return found
