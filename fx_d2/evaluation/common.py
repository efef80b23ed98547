"""What the evaluators share: gathering per-image results over processes, means, safe file writing."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from fx_d2.evaluation.bootstrap import intervals
from fx_d2.evaluation.options import MetricOptions
from fx_d2.structures import DatasetSpec

Row = TypeVar("Row")

Drawn = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Weights (D, N) of N images in D draws -> values (D,) of each metric, NaN where a draw leaves it undefined."""


class TaskEvaluator(DatasetEvaluator, Generic[Row]):
    """One task of one dataset: a small row for each image, gathered over the processes, then numbers from rows.

    Everything after the gathering is a function of the rows, so that any subset of the images (a subgroup, a draw)
    is evaluated like the whole.

    Attributes:
        rows: by image id, sorted, of all processes: after `evaluate`, on the main process.
    """

    task: ClassVar[str]

    def __init__(self, spec: DatasetSpec, options: MetricOptions | None = None) -> None:
        """spec: the row of the table of datasets, which gives the classes. options: the defaults if None."""
        self.spec, self.options = spec, options or MetricOptions()
        self._seen: dict[int, Row] = {}
        self.rows: dict[int, Row] = {}

    def reset(self) -> None:
        """Forget all images."""
        self._seen, self.rows = {}, {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take in a batch; an image that was seen before, or is not annotated for the task, does not count."""
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = int(sample["image_id"])
            if image_id not in self._seen and sample["annotated"][self.task]:
                row = self.read(sample, output)
                if row is not None:
                    self._seen[image_id] = row

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Metrics over all processes, {task: `metrics`}, on the main process; None on the others. Collective."""
        rows = gather_by_image(self._seen)
        if rows is None:
            return None
        self.rows = rows
        return {self.task: self.metrics(rows)}

    @abstractmethod
    def read(self, sample: dict[str, Any], output: dict[str, Any]) -> Row | None:
        """An image's row, or None when it cannot count; raises FXError for an output that makes no sense."""

    @abstractmethod
    def metrics(self, rows: Mapping[int, Row]) -> dict[str, float]:
        """Numbers of some images, headline first; "<metric>/<class>" per class, NaN = undefined."""

    @abstractmethod
    def drawn(self, rows: Mapping[int, Row]) -> Drawn:
        """The metrics that have intervals, as a function of how often each image counts; images in order of the rows.

        With weights of one it gives the values of `metrics`.
        """

    def intervals(self, rows: Mapping[int, Row], patients: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals of the metrics of `drawn`; patients in the order of the rows."""
        return intervals(patients, self.options.bootstrap, self.options.seed, self.drawn(rows))

    @abstractmethod
    def details(self, rows: Mapping[int, Row]) -> dict[str, Any]:
        """Curves and tables as plain data."""

    @abstractmethod
    def arrays(self, rows: Mapping[int, Row], images: Sequence[int]) -> dict[str, np.ndarray]:
        """The rows as arrays over the images of the split, for the file of scores."""

    @abstractmethod
    def restored(self, arrays: Mapping[str, np.ndarray]) -> dict[int, Row]:
        """The rows, by image id, behind the arrays of a file of scores; images that do not count have none."""


def gather_by_image(rows: dict[int, Row]) -> dict[int, Row] | None:
    """Per-image results of all processes, keyed and sorted by image id, every image once.

    Distributed samplers may repeat an image to fill the last batch: the first result of an image counts.
    A collective call: every process must make it. Returns None on all processes but the main one.
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
    """Mean of the values that are not NaN; NaN, without a warning, when there is none."""
    kept = [v for v in values if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")


def log_undefined(logger: logging.Logger, dataset: str, metric: str, undefined: Sequence[str], reason: str) -> None:
    """Say which classes have no value of a metric; silent when all have one."""
    if undefined:
        logger.warning(
            "%s: %s undefined for %s (%s); left out of the mean", dataset, metric, ", ".join(undefined), reason
        )


def weights_hash(model: nn.Module) -> str:
    """ "sha256:..." of a model's parameters and buffers: names, types, shapes and bytes, wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def plain(value: Any) -> Any:
    """Data for json: NaN becomes None, tuples become lists, in dicts and lists of any depth."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
