"""Shared by the evaluators: gathering per-image results from all ranks, means."""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from fx_d2.evaluation.bootstrap import intervals
from fx_d2.evaluation.options import MetricOptions
from fx_d2.structures import DatasetSpec

logger = logging.getLogger(__name__)

Row = TypeVar("Row")

Drawn = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Weights (D, N) of N images in D resamples -> values (D,) of each metric, NaN where a resample leaves it undefined."""


class TaskEvaluator(DatasetEvaluator, Generic[Row]):
    """Evaluator of one task of one dataset: keeps a small row per image and computes metrics from the rows.

    The rows of all ranks are gathered. All that follows is a function of the rows, so any subset of the images (a
    subgroup, a bootstrap resample) is evaluated in the same way as the whole split.

    Attributes:
        task: the task, one of TASKS.
        headline: metric by which a class counts as undefined.
        undefined: what such a class lacks, for messages.
        rows: image id -> row over all ranks, sorted by id; set by `evaluate` on the main process.
    """

    task: ClassVar[str]
    headline: ClassVar[str]
    undefined: ClassVar[str]

    def __init__(self, spec: DatasetSpec, options: MetricOptions | None = None) -> None:
        """spec: dataset row (`DatasetSpec`) with the classes. options: None = defaults."""
        self.spec, self.options = spec, options or MetricOptions()
        self._seen: dict[int, Row] = {}
        self.rows: dict[int, Row] = {}

    def reset(self) -> None:
        """Drop all images."""
        self._seen, self.rows = {}, {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add a batch; images already seen and images not annotated for the task are skipped."""
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = int(sample["image_id"])
            if image_id not in self._seen and sample["annotated"][self.task]:
                row = self.read(sample, output)
                if row is not None:
                    self._seen[image_id] = row

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Metrics over all ranks, {task: `metrics`}, on the main process; None on the others. Collective."""
        rows = gather_by_image(self._seen)
        if rows is None:
            return None
        self.rows, found = rows, self.metrics(rows)
        names = [name for name in self.spec.classes(self.task) if np.isnan(found[f"{self.headline}/{name}"])]
        if names:
            facts = self.spec.name, self.headline, ", ".join(names), self.undefined
            logger.warning("%s: %s undefined for %s (%s); left out of the mean", *facts)
        return {self.task: found}

    @abstractmethod
    def read(self, sample: dict[str, Any], output: dict[str, Any]) -> Row | None:
        """Row of an image, or None if the image does not count; raises FXError for an invalid output."""

    @abstractmethod
    def metrics(self, rows: Mapping[int, Row]) -> dict[str, float]:
        """Metrics over a set of images, headline first; "<metric>/<class>" per class, NaN = undefined."""

    @abstractmethod
    def drawn(self, rows: Mapping[int, Row]) -> Drawn:
        """The metrics that get intervals, as a function of image weights; images in the order of the rows.

        With all weights 1 it returns the values of `metrics`.
        """

    def intervals(self, rows: Mapping[int, Row], patients: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals of the metrics of `drawn`; `patients` in the order of the rows."""
        return intervals(patients, self.options.bootstrap, self.options.seed, self.drawn(rows))

    @abstractmethod
    def details(self, rows: Mapping[int, Row]) -> dict[str, Any]:
        """Curves and tables as plain data."""

    @abstractmethod
    def arrays(self, rows: Mapping[int, Row], images: Sequence[int]) -> dict[str, np.ndarray]:
        """The rows as arrays over the images of the split, for the scores file."""

    @abstractmethod
    def restored(self, arrays: Mapping[str, np.ndarray]) -> dict[int, Row]:
        """The rows by image id, rebuilt from the arrays of a scores file; images that do not count have none."""


def gather_by_image(rows: dict[int, Row]) -> dict[int, Row] | None:
    """Per-image results of all ranks, sorted by image id, each image once.

    Distributed samplers may repeat an image to fill the last batch: the first result of an image is kept.
    Collective: every rank must call it. Returns None on all ranks except the main process.
    """
    gathered = comm.gather(rows, dst=0)
    if not comm.is_main_process():
        return None
    merged: dict[int, Row] = {}
    for part in gathered:
        for image_id, row in part.items():
            merged.setdefault(image_id, row)
    return dict(sorted(merged.items()))


def nan_mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, if there are none."""
    kept = [v for v in values if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")


def weights_hash(model: nn.Module) -> str:
    """Hash "sha256:..." of a model's parameters and buffers: names, dtypes, shapes and bytes, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def plain(value: Any) -> Any:
    """Data for JSON: NaN becomes None, tuples become lists, at any depth of dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value
