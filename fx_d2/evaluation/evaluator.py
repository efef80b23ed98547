"""Building the evaluators of a dataset, and running models over evaluation splits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from fx_d2.evaluation.classification import ClassificationEvaluator
from fx_d2.evaluation.common import TaskEvaluator, gather_by_image
from fx_d2.evaluation.heads import HeadComparison
from fx_d2.evaluation.image_scores import write_scores
from fx_d2.evaluation.localization import LocalizationEvaluator
from fx_d2.evaluation.options import MetricOptions
from fx_d2.evaluation.predictions import prediction_record, write_predictions
from fx_d2.evaluation.segmentation import SegmentationEvaluator
from fx_d2.evaluation.subgroups import ImageInfo, groups, means_only
from fx_d2.structures import SPLITS, TASKS, DatasetSpec, FXError

logger = logging.getLogger(__name__)

LOG_SECONDS = 15.0
"""Seconds between progress lines."""

Batch = list[dict[str, Any]]
LoaderFactory = Callable[[], Iterable[Batch]]
Thresholds = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Model -> dataset -> class -> operating point."""


@dataclass
class Evaluation:
    """Results of an evaluation; empty on all ranks except the main process.

    Below, <name> is the dataset, or the split if the dataset is evaluated on more than one.

    Attributes:
        metrics: {"student/<name>/<task>/<metric>": value}, NaN = undefined.
        intervals: 95 % bootstrap intervals (low, high) by the key of their metric.
        details: {"student/<name>/<task>": `TaskEvaluator.details`}, and "student/<name>/heads" if requested.
        subgroups: {"student/<name>": {"sex=F": {"images", "patients", "metrics": {"<task>/<metric>": value}}}}.
        operating_points: `operating_points.Points`, for validation splits.
        scores: {"student/<name>": scores file (`write_scores`), relative to OUTPUT_DIR}.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    subgroups: dict[str, Any] = field(default_factory=dict)
    operating_points: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, str] = field(default_factory=dict)


def build_evaluators(
    spec: DatasetSpec,
    tasks: Collection[str] = TASKS,
    options: MetricOptions | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> list[TaskEvaluator[Any]]:
    """One evaluator per requested task that the dataset has; `thresholds` as in `ClassificationEvaluator`."""
    built: list[TaskEvaluator[Any]] = []
    for task in (task for task in spec.tasks if task in tasks):
        if task == "cls":
            built.append(ClassificationEvaluator(spec, options, thresholds))
        elif task == "loc":
            built.append(LocalizationEvaluator(spec, options))
        else:
            built.append(SegmentationEvaluator(spec, options))
    return built


def evaluate_model(
    cfg: CfgNode,
    models: Mapping[str, nn.Module],
    loaders: Mapping[str, LoaderFactory],
    specs: Iterable[DatasetSpec],
    tasks: Collection[str] = TASKS,
    *,
    full: bool = True,
    thresholds: Thresholds | None = None,
) -> Evaluation:
    """Evaluate all models on all splits in float32; every image is loaded once and passed to every model.

    Collective. The training flag of every module is restored afterwards.

    Args:
        cfg: TEST and OUTPUT_DIR are read. Predictions go to <OUTPUT_DIR>/inference/predictions_<which>.json, per-image
            scores to inference/scores_<which>_<split>.npz.
        models: {"student": ..., "teacher": ...}; each maps a batch to one dict per image.
        loaders: registered split such as "jsrt_test" -> function that builds its loader of evaluation batches.
        specs: dataset rows (`DatasetSpec`) of the splits; with TEST.CROSS_HEADS also those of the other heads.
        tasks: tasks to evaluate; a split whose dataset has none of them is skipped.
        full: False computes the metrics only, without intervals, subgroups, curves and files.
        thresholds: operating points; not applied to validation splits, on which they were chosen.
    """
    specs = tuple(specs)
    rows = {split: spec for split, spec in _rows_of(loaders, specs).items() if set(spec.tasks) & set(tasks)}
    plan = _Plan(cfg, specs, thresholds or {}, full)
    result = Evaluation()
    saved: dict[str, dict[str, list[dict[str, Any]]]] = {which: {} for which in models}
    with torch.no_grad(), _all_in_eval_mode(models.values()):
        for split, spec in rows.items():
            wanted = [task for task in spec.tasks if task in tasks]
            runs = {which: _Run(which, model, split, spec, wanted, plan) for which, model in models.items()}
            _run_over(split, loaders[split](), runs)
            for which, run in runs.items():
                saved[which][split] = run.finish(_metric_name(split, rows), result)
    if plan.predictions is not None and comm.is_main_process():
        for which, splits in saved.items():
            path = Path(cfg.OUTPUT_DIR) / "inference" / f"predictions_{which}.json"
            write_predictions(path, which, splits, plan.predictions)
            logger.info("wrote the predictions of the %s to %s", which, path)
    return result


def metric_names(which: Iterable[str], splits: Iterable[str], specs: Iterable[DatasetSpec]) -> list[str]:
    """Keys of the metrics that `evaluate_model` returns for models named `which`, without running them."""
    rows = _rows_of(splits, tuple(specs))
    return [
        f"{model}/{_metric_name(split, rows)}/{evaluator.task}/{name}"
        for model in which
        for split, spec in rows.items()
        for evaluator in build_evaluators(spec)
        for name in evaluator.metrics({})
    ]


class _Plan:
    """What to compute and save in addition to the metrics."""

    def __init__(self, cfg: CfgNode, specs: tuple[DatasetSpec, ...], thresholds: Thresholds, full: bool) -> None:
        node = cfg.TEST
        self.options, self.specs, self.thresholds, self.full = MetricOptions.from_config(cfg), specs, thresholds, full
        self.predictions: float | None = node.SAVE_SCORE_THRESH if full and node.SAVE_PREDICTIONS else None
        self.scores: Path | None = Path(cfg.OUTPUT_DIR) if full and node.SAVE_SCORES else None
        self.heads: bool = full and node.CROSS_HEADS


class _Run:
    """One model on one split: its evaluators, and what else the plan requests."""

    def __init__(
        self, which: str, model: nn.Module, split: str, spec: DatasetSpec, tasks: list[str], plan: _Plan
    ) -> None:
        self._which, self._model, self._split, self._spec, self._tasks = which, model, split, spec, tasks
        self._plan = plan
        self._validation = split.endswith("_val")
        points = plan.thresholds.get(which, {})
        own = {} if self._validation else points.get(spec.name, {})
        self._evaluators = build_evaluators(spec, tasks, plan.options, own)
        self._images: dict[int, ImageInfo] = {}
        self._records: dict[int, dict[str, Any]] = {}
        self._heads = HeadComparison(spec, plan.specs, points) if plan.heads and "cls" in tasks else None

    def step(self, batch: Batch) -> None:
        """Run the model on a batch and collect the results."""
        batch = [sample | {"tasks": self._tasks} for sample in batch]
        outputs = self._model(batch)
        if len(outputs) != len(batch):
            raise FXError(f"{self._spec.name}: the model returned {len(outputs)} results for {len(batch)} images")
        for evaluator in self._evaluators:
            evaluator.process(batch, outputs)
        for sample, output in zip(batch, outputs, strict=True):
            image_id = int(sample["image_id"])
            if image_id not in self._images:
                self._images[image_id] = _info(sample)
                if self._plan.predictions is not None:
                    self._records[image_id] = prediction_record(sample, output, self._plan.predictions)
        if self._heads is not None:
            self._heads.process(self._model, batch)

    def finish(self, name: str, result: Evaluation) -> list[dict[str, Any]]:
        """Add the metrics to `result` under `name`; returns the predictions. Collective."""
        records = gather_by_image(self._records) or {}
        images = gather_by_image(self._images)
        found = {evaluator.task: evaluator.evaluate() for evaluator in self._evaluators}
        heads = self._heads.result(self._own_scores()) if self._heads is not None else None
        if images is None:
            return []
        prefix = f"{self._which}/{name}"
        values = {task: entry[task] for task, entry in found.items() if entry is not None}
        result.metrics |= _flatten(prefix, values)
        logger.info("%s on %s: %s", self._which, self._split, _headline(values))
        if heads is not None:
            result.details[f"{prefix}/heads"] = heads
        if self._plan.full:
            self._finish_full(prefix, images, result)
        return list(records.values())

    def _own_scores(self) -> dict[int, Any]:
        return next(e.rows for e in self._evaluators if e.task == "cls")

    def _finish_full(self, prefix: str, images: dict[int, ImageInfo], result: Evaluation) -> None:
        """Intervals, curves, operating points, subgroups and the scores file, on the main process."""
        arrays: dict[str, Any] = {}
        for evaluator in self._evaluators:
            rows, key = evaluator.rows, f"{prefix}/{evaluator.task}"
            intervals = evaluator.intervals(rows, [images[i].patient_id for i in rows])
            result.intervals |= {f"{key}/{metric}": pair for metric, pair in intervals.items()}
            details = evaluator.details(rows)
            if evaluator.task == "cls":
                points = details.pop("operating_points")
                if self._validation:
                    chosen = {"split": self._split, "points": points}
                    result.operating_points.setdefault(self._which, {})[self._spec.name] = chosen
            result.details[key] = details
            arrays |= evaluator.arrays(rows, list(images))
        result.subgroups[prefix] = {group: self._subgroup(ids, images) for group, ids in groups(images).items()}
        if self._plan.scores is not None:
            file = Path("inference") / f"scores_{self._which}_{self._split}.npz"
            write_scores(self._plan.scores / file, self._spec, images, arrays)
            result.scores[prefix] = str(file)

    def _subgroup(self, ids: list[int], images: Mapping[int, ImageInfo]) -> dict[str, Any]:
        metrics: dict[str, float] = {}
        for evaluator in self._evaluators:
            rows = {i: evaluator.rows[i] for i in ids if i in evaluator.rows}
            metrics |= {f"{evaluator.task}/{k}": v for k, v in means_only(evaluator.metrics(rows)).items()}
        return {"images": len(ids), "patients": len({images[i].patient_id for i in ids}), "metrics": metrics}


def _info(sample: Mapping[str, Any]) -> ImageInfo:
    meta = sample.get("meta") or {}
    # An age of 0 is a known age.
    known = ("" if meta.get(key) is None else str(meta[key]) for key in ("sex", "age", "view"))
    return ImageInfo(str(sample["file_name"]), str(sample["patient_id"]), *known)


def _run_over(split: str, loader: Iterable[Batch], runs: dict[str, _Run]) -> None:
    """Pass every batch to every model and log the progress; raises FXError for an empty loader."""
    total = len(loader) if isinstance(loader, Sized) else None
    start = last = time.perf_counter()
    images = 0
    for count, batch in enumerate(loader, start=1):
        for run in runs.values():
            run.step(batch)
        images += len(batch)
        now = time.perf_counter()
        if now - last >= LOG_SECONDS and total:
            last = now
            left = timedelta(seconds=round((now - start) / count * (total - count)))
            logger.info("evaluating %s: batch %d of %d, time left %s", split, count, total, left)
    # In a distributed run a rank may get no image of a tiny split.
    if not images and comm.get_world_size() == 1:
        raise FXError(f"dataset split {split!r} has no images: nothing to evaluate")
    seconds = time.perf_counter() - start
    facts = images, " on this rank" * (comm.get_world_size() > 1), " and ".join(runs), timedelta(seconds=round(seconds))
    logger.info("evaluated %s: %d images%s with %s in %s", split, *facts)


@contextmanager
def _all_in_eval_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """Put the models into eval mode; on exit every module gets its own training flag back."""
    models = list(models)
    flags = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _rows_of(splits: Iterable[str], specs: Iterable[DatasetSpec]) -> dict[str, DatasetSpec]:
    """Dataset row of each registered split; raises FXError for a split without one."""
    names = {f"{spec.name}_{split}": spec for spec in specs for split in SPLITS}
    rows = {}
    for split in splits:
        if split not in names:
            raise FXError(f"split {split!r} is not <dataset>_<{'|'.join(SPLITS)}> of one of the given datasets")
        rows[split] = names[split]
    return rows


def _metric_name(split: str, rows: Mapping[str, DatasetSpec]) -> str:
    name = rows[split].name
    return name if sum(row.name == name for row in rows.values()) == 1 else split


def _flatten(prefix: str, results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{prefix}/{task}/{name}": value for task, values in results.items() for name, value in values.items()}


def _headline(results: Mapping[str, Mapping[str, float]]) -> str:
    """The first metric of each task, in percent."""
    firsts = {task: next(iter(values.items())) for task, values in results.items() if values}
    return ", ".join(f"{task} {name} {100 * value:.2f}" for task, (name, value) in firsts.items())
