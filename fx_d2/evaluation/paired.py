"""Paired comparison of two models on the same images: differences with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fx_d2.evaluation.bootstrap import patient_weights, percentiles
from fx_d2.evaluation.evaluator import build_evaluators
from fx_d2.evaluation.image_scores import scores_spec
from fx_d2.evaluation.options import MetricOptions
from fx_d2.structures import TASKS, FXError


class Paired(NamedTuple):
    """A metric of two models on the same images; NaN = undefined.

    Attributes:
        first: value of the first model, a fraction.
        second: value of the second model.
        low: lower bound of the 95 % interval of second - first.
        high: upper bound.
        better: fraction of the resamples in which the second is above the first.
    """

    first: float
    second: float
    low: float
    high: float
    better: float

    @property
    def difference(self) -> float:
        """second - first."""
        return self.second - self.first

    @property
    def interval(self) -> tuple[float, float] | None:
        """Interval of the difference, or None if too few resamples define it."""
        return None if np.isnan(self.low) else (self.low, self.high)


def paired_differences(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], *, draws: int, seed: int
) -> dict[str, Paired]:
    """Compare two scores files of the same split, metric by metric, on the same bootstrap resamples of patients.

    Args:
        first: content of a scores file (`read_scores`).
        second: content of the other model's.
        draws: number of resamples; 0 = differences without intervals.
        seed: seed of the resamples; with the evaluation's seed they are the ones behind its intervals.

    Returns:
        {"<task>/<metric>" or "<task>/<metric>/<class>": Paired} for the metrics that have intervals, in the tasks that
        both files contain; "seg/hd95" if both do.

    Raises:
        FXError: the images differ, or the classes or the ground truth of a task that both contain.
    """
    tasks = _shared_tasks(first, second)
    spec = scores_spec(first)
    patients = dict(zip(first["image_id"].tolist(), first["patient_id"].tolist(), strict=True))
    found = {}
    options = MetricOptions(
        hausdorff="seg" in tasks and not any(np.isnan(a["seg_hd95"]).all() for a in (first, second))
    )
    for evaluator in build_evaluators(spec, tasks, options):
        rows = [evaluator.restored(arrays) for arrays in (first, second)]
        if not rows[0]:
            continue
        functions = [evaluator.drawn(part) for part in rows]
        values = [function(np.ones((1, len(rows[0])), np.int64)) for function in functions]
        parts = [
            [function(weights) for function in functions]
            for weights in patient_weights([patients[image] for image in rows[0]], draws, seed)
        ]
        for name in values[0]:
            pair = (float(values[0][name][0]), float(values[1][name][0]))
            gains = np.concatenate([part[1][name] - part[0][name] for part in parts] or [np.zeros(0)])
            low, high = percentiles(gains)
            better = float("nan") if np.isnan(low) else float((gains[~np.isnan(gains)] > 0).mean())
            found[f"{evaluator.task}/{name}"] = Paired(*pair, low, high, better)
    return found


_TRUTH = {"cls": "cls_labels", "loc": "loc_truth", "seg": "seg_positive"}
"""Ground-truth array of each task in a scores file; present if the task was evaluated."""


def _shared_tasks(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> list[str]:
    """The tasks in both files; FXError if the images, or the classes or ground truth of such a task, differ."""
    names = [str(arrays["dataset"]) for arrays in (first, second)]
    # A model of one task has no classes of the others.
    tasks = [task for task in TASKS if all(_TRUTH[task] in arrays for arrays in (first, second))]
    shared = [key for task in tasks for key in (f"{task}_classes", _TRUTH[task])]
    for key in ("dataset", "image_id", "patient_id", *shared):
        if not np.array_equal(first[key], second[key], equal_nan=first[key].dtype.kind == "f"):
            raise FXError(
                f"the scores of {names[0]} and {names[1]} cannot be compared: their {key} differ; evaluate both on the "
                "same prepared dataset with the same DATASETS.LIMIT"
            )
    return tasks
