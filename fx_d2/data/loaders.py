"""Data loaders: one for the whole training run, one per test split."""

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
"""Signals that a cluster sends before it preempts a job, often to the workers as well."""

_WORKER_SECONDS = 30
"""How long a worker keeps running after SIGTERM: longer than a training step."""


class Loader(Generic[T]):
    """A DataLoader that re-raises a worker's FXError in the main process, without the worker's traceback."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        """loader: yields batches, or an FXError in place of a batch (`_unless_error`)."""
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
    """A mapper that returns an FXError instead of raising it, to pass it unchanged from worker to main process."""

    def __init__(self, mapper: Callable[..., dict[str, Any]]) -> None:
        self._mapper = mapper

    def __call__(self, *args: Any) -> dict[str, Any] | FXError:
        try:
            return self._mapper(*args)
        except FXError as error:
            return error


class _SlotDataset(Dataset[dict[str, Any] | FXError]):
    """Samples by SampleKey; records are stored once per dataset, serialized and shared with the workers."""

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
            annotated: by slot, indices of the dicts annotated for its task, int64 (N,).
            mappers: by slot, mapper(record, seed).
            batch_sizes: global batch size by task.
            num_workers: worker processes of the loader.
            pin_memory: return batches in pinned memory.
        """
        self.sizes: dict[Slot, int] = {slot: len(indices) for slot, indices in annotated.items()}
        self._dataset = _SlotDataset(records, annotated, mappers)
        self._batch_sizes, self._num_workers, self._pin_memory = batch_sizes, num_workers, pin_memory

    def check_readable(self) -> None:
        """Load the first and the last image of each slot; FXError if one cannot be read."""
        for slot, size in self.sizes.items():
            for image in {0, size - 1}:
                sample = self._dataset[SampleKey(slot, image, 0)]
                if isinstance(sample, FXError):
                    raise sample

    def loader(
        self, schedule: Schedule, start_iter: int, rank: int, world_size: int, num_iters: int, seed: int
    ) -> Loader[Batch]:
        """The loader of this rank for iterations [start_iter, start_iter + num_iters); `seed` is that of the run.

        A batch collates `TrainMapper` samples of one dataset and one task; all ranks get the same number.

        Raises:
            FXError: a batch size that is not divisible by the world size; while iterating, an unreadable image.
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
    """Check the inputs of an evaluation before training starts.

    Raises:
        FXError: a split without images, missing files, or a first image that cannot be read.
    """
    dicts = get_dicts(registered, cfg.DATASETS.LIMIT)
    if not dicts:
        raise FXError(f"dataset split {registered!r} has no images: nothing to evaluate")
    check_images(dicts)
    EvalMapper(cfg, spec_of(registered))(dicts[0])


def training_dicts(cfg: CfgNode, registered: str) -> list[dict[str, Any]]:
    """The dicts of a training split except for the images in DATASETS.EXCLUDE, at most DATASETS.LIMIT of them.

    With DATASETS.FEW_SHOT, a sample of these, annotated for the tasks that SCHEDULE.STRATEGY trains on the dataset.

    Raises:
        FXError: see `overlap.excluded_images` and `few_shot.draw_images`; or no images are left.
    """
    dicts = _wanted_dicts(cfg, registered)
    node = cfg.DATASETS.FEW_SHOT
    if not node.IMAGES:
        return dicts
    return [dicts[i] for i in draw_images(dicts, trained_tasks(cfg, spec_of(registered)), node.IMAGES, node.SEED)]


def trained_tasks(cfg: CfgNode, spec: DatasetSpec) -> list[str]:
    """The tasks of a dataset that SCHEDULE.STRATEGY trains."""
    rows = [row for row in cfg.SCHEDULE.STRATEGY if spec.name in row.get("datasets", [spec.name])]
    return [task for task in spec.tasks if any(row["task"] == task for row in rows)]


def _wanted_dicts(cfg: CfgNode, registered: str) -> list[dict[str, Any]]:
    if not cfg.DATASETS.EXCLUDE:
        return get_dicts(registered, cfg.DATASETS.LIMIT)
    dicts = get_dicts(registered)
    excluded = excluded_images(cfg.DATASETS.EXCLUDE, registered)
    kept = [record for record in dicts if record["image_id"] not in excluded]
    if not kept:
        raise FXError(f"{registered}: DATASETS.EXCLUDE excludes all of its {len(dicts)} images")
    if len(kept) < len(dicts):
        logger.info("%s: %d of %d images excluded by DATASETS.EXCLUDE", registered, len(dicts) - len(kept), len(dicts))
    return kept[: cfg.DATASETS.LIMIT or None]


def build_train_data(cfg: CfgNode) -> TrainData:
    """Collect and check the training images of DATASETS.TRAIN for the tasks that SCHEDULE.STRATEGY trains.

    Raises:
        FXError: no or repeated training datasets, a split without images annotated for one of its tasks, missing image
            files, an invalid DATASETS.EXCLUDE, a patient in both the training split and an evaluated split of a
            dataset, a batch size that is not divisible by the world size.
    """
    rows = [split_name(name)[0] for name in cfg.DATASETS.TRAIN]
    repeated = sorted({row for row in rows if rows.count(row) > 1})
    if repeated or not rows:
        raise FXError(f"DATASETS.TRAIN must name each dataset once, and at least one; repeated: {repeated}")
    cv2.setNumThreads(0)  # OpenCV's thread pool does not survive the fork of the workers.
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
            logger.info("%s: sampled %d images of %d patients: %s", name, len(dicts), patients, names)
        _check_test_patients(cfg, name, dicts)
        records[spec.name] = DatasetFromList(dicts, copy=False)
        for task in trained_tasks(cfg, spec):
            annotated[spec.name, task] = _annotated(name, task, dicts)
            mappers[spec.name, task] = TrainMapper(cfg, spec, task)
        if (spec.name, "cls") in annotated:
            _warn_of_constant_labels(name, spec, dicts)
    if not annotated:
        raise FXError("SCHEDULE.STRATEGY trains no task for which a dataset in DATASETS.TRAIN is annotated")
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
    """The evaluation loader of a registered split: `EvalMapper` samples in file order, sharded over the ranks.

    Batches are lists of samples, whose annotations the evaluators read.

    Raises:
        FXError: an unregistered split, missing image files; while iterating, an unreadable image.
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
    """Keep a worker alive through a stop signal: the main process finishes its step and needs the workers for that.

    multiprocessing also terminates stray workers with SIGTERM, so a worker obeys it, after a delay.
    """
    del worker
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_WORKER_SECONDS))


def _unless_error(collate: Callable[[Sequence[Any]], T], samples: Sequence[Any]) -> T | FXError:
    """The collated samples, or the first FXError among them."""
    error = next((x for x in samples if isinstance(x, FXError)), None)
    return collate(samples) if error is None else error


def _annotated(name: str, task: str, dicts: Sequence[dict[str, Any]]) -> np.ndarray:
    """Indices of the images annotated for a task; FXError if there are none."""
    indices = np.array([i for i, record in enumerate(dicts) if record["annotated"][task]], dtype=np.int64)
    if not len(indices):
        raise FXError(f"{name}: none of its {len(dicts)} images is annotated for {task!r} (DATASETS.LIMIT too small?)")
    logger.info("%s: %d of %d images annotated for %s", name, len(indices), len(dicts), task)
    return indices


def _warn_of_constant_labels(name: str, spec: DatasetSpec, dicts: Sequence[dict[str, Any]]) -> None:
    """Warn of classes whose known labels are all equal: a head would learn a constant."""
    rows = {tuple(record["labels"]) for record in dicts if record["annotated"]["cls"]}
    table = np.array([apply_label_policy(row, spec, training=False) for row in rows])
    known = [column[~np.isnan(column)] for column in table.T]
    constant = [label for label, values in zip(spec.cls_classes, known, strict=True) if len(np.unique(values)) < 2]
    if constant:
        logger.warning(
            "%s: classes with at most one known label value in %d images: %s (blank labels count as %s)",
            name, len(dicts), ", ".join(constant), "unknown" if spec.blank == "ignore" else "0",
        )  # fmt: skip


def _check_test_patients(cfg: CfgNode, name: str, dicts: Sequence[dict[str, Any]]) -> None:
    """FXError for a patient of a training split who is also in an evaluated split of the same dataset."""
    row = split_name(name)[0]
    evaluated = dict.fromkeys((*cfg.DATASETS.TEST, *evaluation_splits(cfg, training=True)))
    others = [other for other in evaluated if split_name(other)[0] == row and other != name]
    if others:
        check_patients({name: dicts} | {other: get_dicts(other, cfg.DATASETS.LIMIT) for other in others})
