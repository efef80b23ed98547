"""Loaders: one for the whole training run, one per test split."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from fx_d2.batch import Batch
from fx_d2.data.annotations import check_patients
from fx_d2.data.catalog import check_images, evaluation_splits, get_dicts, split_name
from fx_d2.data.few_shot import draw_images
from fx_d2.data.mapper import EvalMapper, TrainMapper, apply_label_policy
from fx_d2.data.overlap import excluded_images
from fx_d2.data.sampler import PassBatchSampler, SampleKey, Schedule, Slot, check_batch_sizes
from fx_d2.structures import DatasetSpec, FXError, spec_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What a cluster sends before it takes the machine away, often to the workers as well."""

_WORKER_SECONDS = 30
"""How long a worker goes on after SIGTERM: longer than a step."""


class Loader(Generic[T]):
    """A DataLoader that raises a worker's FXError as the one clear line it is, without the worker's traceback."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        """loader: yields batches, for which an FXError may stand (`_unless_error`)."""
        self.loader = loader
        loader.worker_init_fn = _outlive_signals

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[T]:
        """The batches."""
        for batch in self.loader:
            if isinstance(batch, FXError):
                raise batch
            yield batch


class _Guarded:
    """A mapper that returns an FXError instead of raising it, so that it crosses the process boundary whole."""

    def __init__(self, mapper: Callable[..., dict[str, Any]]) -> None:
        self._mapper = mapper

    def __call__(self, *args: Any) -> dict[str, Any] | FXError:
        try:
            return self._mapper(*args)
        except FXError as error:
            return error


class _SlotDataset(Dataset[dict[str, Any] | FXError]):
    """Samples by SampleKey; records are stored once a dataset, serialized, and shared with the workers."""

    def __init__(
        self,
        records: dict[str, DatasetFromList],
        annotated: dict[Slot, np.ndarray],
        mappers: dict[Slot, Callable[..., dict[str, Any]]],
    ) -> None:
        self._records, self._annotated = records, annotated
        self._mappers = {slot: _Guarded(mapper) for slot, mapper in mappers.items()}

    def __len__(self) -> int:
        return sum(map(len, self._annotated.values()))

    def __getitem__(self, key: SampleKey) -> dict[str, Any] | FXError:
        record = self._records[key.slot[0]][int(self._annotated[key.slot][key.image])]
        return self._mappers[key.slot](record, key.seed)


class TrainData:
    """The training images of all datasets.

    Attributes:
        sizes: number of annotated training images by (dataset, task).
    """

    def __init__(
        self,
        *,
        records: dict[str, DatasetFromList],
        annotated: dict[Slot, np.ndarray],
        mappers: dict[Slot, Callable[..., dict[str, Any]]],
        batch_sizes: dict[str, int],
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        """See `build_train_data`.

        Args:
            records: dataset dicts by dataset.
            annotated: per slot the indices of the dicts annotated for its task, int64 (N,).
            mappers: per slot mapper(record, seed).
            batch_sizes: images a step over all processes, by task.
            num_workers: processes that read images.
            pin_memory: hand batches over in memory that a GPU can read.
        """
        self.sizes: dict[Slot, int] = {slot: len(indices) for slot, indices in annotated.items()}
        self._dataset = _SlotDataset(records, annotated, mappers)
        self._batch_sizes, self._num_workers, self._pin_memory = batch_sizes, num_workers, pin_memory

    def check_readable(self) -> None:
        """Read the first and the last image of each slot; FXError where one cannot be read."""
        for slot, size in self.sizes.items():
            for image in {0, size - 1}:
                sample = self._dataset[SampleKey(slot, image, 0)]
                if isinstance(sample, FXError):
                    raise sample

    def loader(
        self, schedule: Schedule, start_iter: int, rank: int, world_size: int, num_iters: int, seed: int
    ) -> Loader[Batch]:
        """One loader for iterations [start_iter, start_iter + num_iters) of this process; `seed` is the run's.

        A batch is of `TrainMapper` samples of one dataset and one task; all processes get equally many.

        Raises:
            FXError: a batch size that the processes cannot share evenly; while iterating, an unreadable image.
        """
        sampler = PassBatchSampler(
            schedule=schedule,
            sizes=self.sizes,
            batch_sizes=self._batch_sizes,
            seed=seed,
            start_iter=start_iter,
            num_iters=num_iters,
            rank=rank,
            world_size=world_size,
        )
        return Loader(
            DataLoader(
                self._dataset,
                batch_sampler=sampler,
                num_workers=self._num_workers,
                collate_fn=partial(_unless_error, Batch.collate),
                pin_memory=self._pin_memory,
                prefetch_factor=4 if self._num_workers else None,
            )
        )


def check_test_split(cfg: CfgNode, registered: str) -> None:
    """Read what an evaluation will need, before a training of days; FXError as `build_test_loader` and its loader."""
    dicts = get_dicts(registered, cfg.DATASETS.LIMIT)
    if not dicts:
        raise FXError(f"dataset split {registered!r} has no images: nothing to evaluate")
    check_images(dicts)
    EvalMapper(cfg, spec_of(registered))(dicts[0])


def training_dicts(cfg: CfgNode, registered: str) -> list[dict[str, Any]]:
    """The dicts of a training split without the images of DATASETS.EXCLUDE, at most DATASETS.LIMIT of them.

    With DATASETS.FEW_SHOT, the images drawn from these for the tasks of the row that SCHEDULE.STRATEGY trains.

    Raises:
        FXError: see `overlap.excluded_images` and `few_shot.draw_images`; or no image is left.
    """
    dicts = _wanted_dicts(cfg, registered)
    node = cfg.DATASETS.FEW_SHOT
    if not node.IMAGES:
        return dicts
    return [dicts[i] for i in draw_images(dicts, trained_tasks(cfg, spec_of(registered)), node.IMAGES, node.SEED)]


def trained_tasks(cfg: CfgNode, spec: DatasetSpec) -> list[str]:
    """The tasks of a dataset that rows of SCHEDULE.STRATEGY train on it."""
    rows = [row for row in cfg.SCHEDULE.STRATEGY if spec.name in row.get("datasets", [spec.name])]
    return [task for task in spec.tasks if any(row["task"] == task for row in rows)]


def _wanted_dicts(cfg: CfgNode, registered: str) -> list[dict[str, Any]]:
    if not cfg.DATASETS.EXCLUDE:
        return get_dicts(registered, cfg.DATASETS.LIMIT)
    dicts = get_dicts(registered)
    excluded = excluded_images(cfg.DATASETS.EXCLUDE, registered)
    kept = [record for record in dicts if record["image_id"] not in excluded]
    if not kept:
        raise FXError(f"{registered}: DATASETS.EXCLUDE leaves out all of its {len(dicts)} images")
    if len(kept) < len(dicts):
        logger.info("%s: %d of %d images left out by DATASETS.EXCLUDE", registered, len(dicts) - len(kept), len(dicts))
    return kept[: cfg.DATASETS.LIMIT or None]


def build_train_data(cfg: CfgNode) -> TrainData:
    """The training images of DATASETS.TRAIN for the tasks that SCHEDULE.STRATEGY trains on each, checked.

    Raises:
        FXError: no or repeated training rows, a split without images annotated for one of its tasks, missing image
            files, a wrong DATASETS.EXCLUDE, a patient of a training split also in a test split of DATASETS.TEST, a
            batch size that the processes cannot share evenly.
    """
    rows = [split_name(name)[0] for name in cfg.DATASETS.TRAIN]
    repeated = sorted({row for row in rows if rows.count(row) > 1})
    if repeated or not rows:
        raise FXError(f"DATASETS.TRAIN must name each dataset once, and at least one; repeated: {repeated}")
    cv2.setNumThreads(0)  # Threads of the parent would not survive the fork of the workers.
    records: dict[str, DatasetFromList] = {}
    annotated: dict[Slot, np.ndarray] = {}
    mappers: dict[Slot, Callable[..., dict[str, Any]]] = {}
    for name in cfg.DATASETS.TRAIN:
        spec = spec_of(name)
        dicts = training_dicts(cfg, name)
        check_images(dicts)
        if cfg.DATASETS.FEW_SHOT.IMAGES:
            patients = len({record["patient_id"] for record in dicts})
            names = ", ".join(os.path.basename(record["file_name"]) for record in dicts)
            logger.info("%s: %d images of %d patients drawn: %s", name, len(dicts), patients, names)
        _check_test_patients(cfg, name, dicts)
        records[spec.name] = DatasetFromList(dicts, copy=False)
        for task in trained_tasks(cfg, spec):
            annotated[spec.name, task] = _annotated(name, task, dicts)
            mappers[spec.name, task] = TrainMapper(cfg, spec, task)
        if (spec.name, "cls") in annotated:
            _warn_of_constant_labels(name, spec, dicts)
    if not annotated:
        raise FXError("SCHEDULE.STRATEGY trains no task that a dataset of DATASETS.TRAIN offers")
    batch_sizes = {task: cfg.SCHEDULE.BATCH_SIZE[task.upper()] for _, task in annotated}
    check_batch_sizes(batch_sizes, comm.get_world_size())
    return TrainData(
        records=records,
        annotated=annotated,
        mappers=mappers,
        batch_sizes=batch_sizes,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )


def build_test_loader(cfg: CfgNode, registered: str) -> Loader[list[dict[str, Any]]]:
    """The evaluation loader of a registered split: `EvalMapper` samples in the file's order, shared over processes.

    Batches are lists of samples, whose annotations the evaluators read.

    Raises:
        FXError: a split that is not registered, missing image files; while iterating, an unreadable image.
    """
    spec = spec_of(registered)
    dicts = get_dicts(registered, cfg.DATASETS.LIMIT)
    check_images(dicts)
    cv2.setNumThreads(0)
    return Loader(
        build_detection_test_loader(
            dicts,
            mapper=_Guarded(EvalMapper(cfg, spec)),
            sampler=InferenceSampler(len(dicts)),
            batch_size=cfg.TEST.BATCH_SIZE,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=partial(_unless_error, list),
        )
    )


def _outlive_signals(worker: int) -> None:
    """The main process finishes its step when it is asked to stop, and needs its workers for that.

    SIGTERM is also how multiprocessing ends a worker that nobody told to end, so it counts, but later.
    """
    del worker
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_WORKER_SECONDS))


def _unless_error(collate: Callable[[Sequence[Any]], T], samples: Sequence[Any]) -> T | FXError:
    """What `collate` makes of the samples, or the first FXError that stands for one of them."""
    error = next((x for x in samples if isinstance(x, FXError)), None)
    return collate(samples) if error is None else error


def _annotated(name: str, task: str, dicts: Sequence[dict[str, Any]]) -> np.ndarray:
    """Indices of the images annotated for a task; FXError when there are none."""
    indices = np.array([i for i, record in enumerate(dicts) if record["annotated"][task]], dtype=np.int64)
    if not len(indices):
        raise FXError(f"{name}: none of its {len(dicts)} images is annotated for {task!r} (DATASETS.LIMIT too small?)")
    logger.info("%s: %d of %d images annotated for %s", name, len(indices), len(dicts), task)
    return indices


def _warn_of_constant_labels(name: str, spec: DatasetSpec, dicts: Sequence[dict[str, Any]]) -> None:
    """Name the labels that never differ where they are known: a head learns to say them always."""
    rows = {tuple(record["labels"]) for record in dicts if record["annotated"]["cls"]}
    table = np.array([apply_label_policy(row, spec, training=False) for row in rows])
    known = [column[~np.isnan(column)] for column in table.T]
    constant = [label for label, values in zip(spec.cls_classes, known, strict=True) if len(np.unique(values)) < 2]
    if constant:
        logger.warning(
            "%s: labels with one known value, or none, in its %d images: %s (blank labels are %s, as the row says)",
            name, len(dicts), ", ".join(constant), "unknown" if spec.blank == "ignore" else "0",
        )  # fmt: skip


def _check_test_patients(cfg: CfgNode, name: str, dicts: Sequence[dict[str, Any]]) -> None:
    """Refuse patients of a training split in the same dataset's other splits that are or will be evaluated."""
    row = split_name(name)[0]
    evaluated = dict.fromkeys((*cfg.DATASETS.TEST, *evaluation_splits(cfg, training=True)))
    others = [other for other in evaluated if split_name(other)[0] == row and other != name]
    if others:
        check_patients({name: dicts} | {other: get_dicts(other, cfg.DATASETS.LIMIT) for other in others})
