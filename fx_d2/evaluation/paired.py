"""Two models on the same images: differences with intervals from the same draws of patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fx_d2.evaluation.bootstrap import ENOUGH, LEVEL, patient_weights
from fx_d2.evaluation.evaluator import build_evaluators
from fx_d2.evaluation.image_scores import scores_spec
from fx_d2.structures import TASKS, FXError


class Paired(NamedTuple):
    """A metric of two models on the same images; NaN = undefined.

    Attributes:
        first: its value of the first model, a share.
        second: of the second model.
        low: lower end of the 95 % interval of second - first.
        high: upper end.
        better: share of the draws in which the second is above the first.
    """

    first: float
    second: float
    low: float
    high: float
    better: float

    @property
    def difference(self) -> float:
        """How far the second is above the first."""
        return self.second - self.first

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the difference, or None where too few draws define it."""
        return None if np.isnan(self.low) else (self.low, self.high)


def paired_differences(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], *, draws: int, seed: int
) -> dict[str, Paired]:
    """Compare two files of scores of the same split, metric by metric, in the same draws of patients.

    Args:
        first: content of a scores file (`read_scores`).
        second: of the other model.
        draws: number of draws, at least one.
        seed: of the draws; with that of the evaluation, the draws are those behind its intervals.

    Returns:
        {"<task>/<metric>" or "<task>/<metric>/<class>": Paired} of the metrics that have intervals and tasks that both
        files hold.

    Raises:
        FXError: the files are not of the same images, or a task that both hold not of the same classes and truth.
    """
    tasks = _shared_tasks(first, second)
    spec = scores_spec(first)
    patients = dict(zip(first["image_id"].tolist(), first["patient_id"].tolist(), strict=True))
    found = {}
    for evaluator in build_evaluators(spec, tasks):
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
            gains = np.concatenate([part[1][name] - part[0][name] for part in parts])
            found[f"{evaluator.task}/{name}"] = Paired(*pair, *_interval(gains))
    return found


_TRUTH = {"cls": "cls_labels", "loc": "loc_truth", "seg": "seg_positive"}
"""What a file of scores says of the truth when the task was evaluated."""


def _interval(gains: np.ndarray) -> tuple[float, float, float]:
    """Interval, and share above 0; NaN where too few draws define the difference (see `bootstrap.intervals`)."""
    defined = gains[~np.isnan(gains)]
    if len(defined) < ENOUGH * len(gains):
        return (float("nan"),) * 3
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, (tail, 1 - tail))
    return float(low), float(high), float((defined > 0).mean())


def _shared_tasks(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> list[str]:
    """The tasks that both files hold; FXError where images, or classes or truth of such a task, differ."""
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
