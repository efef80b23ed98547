"""From a row of the table of datasets to its evaluators, and from models and loaders to flat metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from torch import nn

from fx_d2.evaluation.classification import ClassificationEvaluator
from fx_d2.evaluation.common import gather_by_image
from fx_d2.evaluation.localization import LocalizationEvaluator
from fx_d2.evaluation.predictions import prediction_record, write_predictions
from fx_d2.evaluation.segmentation import SegmentationEvaluator
from fx_d2.structures import SPLITS, TASKS, DatasetSpec, FXError

logger = logging.getLogger(__name__)

EVALUATORS = {"cls": ClassificationEvaluator, "loc": LocalizationEvaluator, "seg": SegmentationEvaluator}

LOG_SECONDS = 15.0
"""Time between two progress lines."""

Batch = list[dict[str, Any]]
LoaderFactory = Callable[[], Iterable[Batch]]


def build_evaluators(spec: DatasetSpec, tasks: Collection[str] = TASKS) -> DatasetEvaluators:
    """One evaluator per task that the dataset has and that is asked for.

    Its `evaluate()` gives {task: {metric: value}} on the main process and {} on the others.
    """
    return DatasetEvaluators([EVALUATORS[task](spec) for task in spec.tasks if task in tasks])


def evaluate_model(
    cfg: CfgNode,
    models: Mapping[str, nn.Module],
    loaders: Mapping[str, LoaderFactory],
    specs: Iterable[DatasetSpec],
    tasks: Collection[str] = TASKS,
) -> dict[str, float]:
    """Evaluate all models on all splits, in float32; every image is read once and shown to every model.

    A collective call when several processes run. The models' training flags are restored, module by module.

    Args:
        cfg: TEST.SAVE_PREDICTIONS, TEST.SAVE_SCORE_THRESH and OUTPUT_DIR are read; predictions go to
            <OUTPUT_DIR>/inference/predictions_<which>.json.
        models: {"student": ..., "teacher": ...}; called with a batch, each returns one dict an image.
        loaders: registered split such as "jsrt_test" -> function that builds its loader of evaluation batches.
        specs: the rows behind the splits.
        tasks: only these are computed; a split whose dataset has none of them is skipped.

    Returns:
        On the main process {"student/<dataset>/<task>/<metric>": fraction}, NaN = undefined; {} on the others.
        A dataset that is evaluated on more than one split goes by the split's name in place of its own.
    """
    rows = {split: spec for split, spec in _rows_of(loaders, specs).items() if set(spec.tasks) & set(tasks)}
    saved: dict[str, dict[str, list[dict[str, Any]]]] = {which: {} for which in models}
    metrics: dict[str, float] = {}
    thresh = cfg.TEST.SAVE_SCORE_THRESH if cfg.TEST.SAVE_PREDICTIONS else None
    with torch.no_grad(), _all_in_eval_mode(models.values()):
        for split, spec in rows.items():
            wanted = [task for task in spec.tasks if task in tasks]
            runs = {which: _Run(model, spec, wanted, thresh) for which, model in models.items()}
            _run_over(split, loaders[split](), runs)
            for which, run in runs.items():
                results, records = run.finish()
                name = _metric_name(split, rows)
                flat = _flatten(f"{which}/{name}", results)
                metrics |= flat
                saved[which][split] = records
                if comm.is_main_process():
                    logger.info("%s on %s: %s", which, split, _headline(results))
    if thresh is not None and comm.is_main_process():
        for which, splits in saved.items():
            path = Path(cfg.OUTPUT_DIR) / "inference" / f"predictions_{which}.json"
            write_predictions(path, which, splits, thresh)
            logger.info("predictions of the %s written to %s", which, path)
    return metrics


class _Run:
    """One model on one split: its evaluators and, when asked for, its predictions."""

    def __init__(self, model: nn.Module, spec: DatasetSpec, tasks: list[str], save_thresh: float | None) -> None:
        self._model, self._spec, self._tasks, self._thresh = model, spec, tasks, save_thresh
        self._evaluators = build_evaluators(spec, tasks)
        self._evaluators.reset()
        self._records: dict[int, dict[str, Any]] = {}

    def step(self, batch: Batch) -> None:
        """Run the model on a batch and take its results in."""
        batch = [sample | {"tasks": self._tasks} for sample in batch]
        outputs = self._model(batch)
        if len(outputs) != len(batch):
            raise FXError(f"{self._spec.name}: the model returned {len(outputs)} results for {len(batch)} images")
        self._evaluators.process(batch, outputs)
        if self._thresh is not None:
            for sample, output in zip(batch, outputs, strict=True):
                self._records.setdefault(int(sample["image_id"]), prediction_record(sample, output, self._thresh))

    def finish(self) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
        """Metrics per task and the predictions, both empty on all processes but the main one."""
        records = gather_by_image(self._records) or {}
        return dict(self._evaluators.evaluate() or {}), list(records.values())


def _run_over(split: str, loader: Iterable[Batch], runs: dict[str, _Run]) -> None:
    """Show every batch to every model, with a progress line from time to time; FXError for an empty loader."""
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
    # A process of a distributed run may have no image of a tiny split.
    if not images and comm.get_world_size() == 1:
        raise FXError(f"dataset split {split!r} has no images: nothing to evaluate")
    seconds = time.perf_counter() - start
    names = " and ".join(runs)
    logger.info("evaluated %s: %d images with %s in %s", split, images, names, timedelta(seconds=round(seconds)))


@contextmanager
def _all_in_eval_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has exactly the training flag that it had."""
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
    """The row of each registered split; raises FXError for a split without one."""
    names = {f"{spec.name}_{split}": spec for spec in specs for split in SPLITS}
    rows = {}
    for split in splits:
        if split not in names:
            raise FXError(f"split {split!r} is not <dataset>_<{'|'.join(SPLITS)}> of one of the datasets given")
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
