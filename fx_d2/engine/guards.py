"""Checks before the first step, for everything that would otherwise fail later in a run."""

from __future__ import annotations

import fnmatch
import functools
import logging
import math
import operator
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from fx_d2.data import TrainData, check_test_split, evaluation_splits
from fx_d2.engine.checkpoint_files import BEST, numbered
from fx_d2.engine.distributed import on_first
from fx_d2.engine.optimizer import moments_kept
from fx_d2.engine.schedule import PhaseSchedule
from fx_d2.modeling import FoundationX
from fx_d2.structures import COMPONENTS, HEAD_COMPONENTS, FXError, spec_of

logger = logging.getLogger(__name__)

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("SOLVER.CLIP_NORM.CLS", 0, math.inf),
    ("SOLVER.CLIP_NORM.LOC", 0, math.inf),
    ("SOLVER.CLIP_NORM.SEG", 0, math.inf),
    ("SOLVER.MOMENTUM", 0, 1),
    ("SOLVER.WEIGHT_DECAY", 0, math.inf),
    ("SOLVER.WEIGHT_DECAY_NORM", 0, math.inf),
    ("SOLVER.WEIGHT_DECAY_BIAS", 0, math.inf),
    ("SOLVER.WEIGHT_DECAY_EMBED", 0, math.inf),
    ("SOLVER.WARMUP_CYCLES", 0, math.inf),
    ("SOLVER.FINAL_LR_FACTOR", 0, math.inf),
    ("SOLVER.CHECKPOINT_CYCLES", 1, math.inf),
    ("SOLVER.CHECKPOINT_STEPS", 0, math.inf),
    ("SOLVER.CHECKPOINT_MINUTES", 0, math.inf),
    ("SOLVER.CHECKPOINTS_TO_KEEP", 1, math.inf),
    ("SOLVER.CHECKPOINT_KEEP_CYCLES", 0, math.inf),
    ("MODEL.TEACHER.CONSISTENCY", 0, 1),
    ("DATASETS.LIMIT", 0, math.inf),
    ("DATASETS.FEW_SHOT.IMAGES", 0, math.inf),
    ("DATALOADER.NUM_WORKERS", 0, math.inf),
    ("TEST.EVAL_PASSES", 0, math.inf),
    ("TEST.EVAL_CYCLES", 0, math.inf),
    ("TEST.BATCH_SIZE", 1, math.inf),
    *((f"SOLVER.LR_FACTOR.{component.upper()}", 0, math.inf) for component in COMPONENTS),
)
"""Numeric keys of a training run with their minimum and maximum."""


def check_values(cfg: CfgNode) -> None:
    """Check the values of keys that nothing else checks, each on its own.

    Raises:
        FXError: naming the key.
    """
    for key, least, largest in _RANGES:
        value = functools.reduce(operator.getitem, key.split("."), cfg)
        if not least <= value <= largest:
            allowed = f"{least} or more" if largest == math.inf else f"from {least} to {largest}"
            raise FXError(f"{key} is {value}: it must be {allowed}")
    if not 0 < cfg.SOLVER.BASE_LR < math.inf:
        raise FXError(f"SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR}: it must be above 0")
    if not 0 < cfg.SOLVER.LAYER_DECAY <= 1:
        raise FXError(f"SOLVER.LAYER_DECAY is {cfg.SOLVER.LAYER_DECAY}: it must be above 0 and at most 1 (off)")
    if cfg.SOLVER.OPTIMIZER == "sgd" and cfg.SOLVER.NESTEROV and not cfg.SOLVER.MOMENTUM:
        raise FXError("SOLVER.NESTEROV needs a SOLVER.MOMENTUM above 0")
    models = ["student", "teacher"]
    if not cfg.TEST.MODELS or not all(name in models for name in cfg.TEST.MODELS):
        raise FXError(f"TEST.MODELS is {list(cfg.TEST.MODELS)}: choose from {models}")
    if cfg.MODEL.WEIGHTS_FROM not in ["", *models]:
        raise FXError(f"MODEL.WEIGHTS_FROM is {cfg.MODEL.WEIGHTS_FROM!r}: choose one of {models}, or leave it empty")
    if cfg.MODEL.WEIGHTS_FROM and not cfg.MODEL.WEIGHTS:
        raise FXError(
            f"MODEL.WEIGHTS_FROM is {cfg.MODEL.WEIGHTS_FROM!r}, but MODEL.WEIGHTS is empty: set it, or leave "
            "MODEL.WEIGHTS_FROM empty"
        )


def check_start(
    cfg: CfgNode, model: FoundationX, schedule: PhaseSchedule, data: TrainData, *, with_tests: bool
) -> None:
    """Check norms, heads, checkpoint settings and, on the main process, that images can be read.

    `build_optimizer` checks that every parameter is in exactly one group, and the loaders check that batch sizes are
    divisible by the number of processes. A collective call.

    Args:
        cfg: of the run.
        model: to be trained.
        schedule: of the run.
        data: training data.
        with_tests: whether the run will evaluate.

    Raises:
        FXError: naming the key, head or file.
    """
    check_norm(cfg, model)
    check_heads(model, schedule)
    node = cfg.SOLVER
    if node.CHECKPOINT_BEST and cfg.TEST.SPLIT == "test":
        raise FXError(
            "SOLVER.CHECKPOINT_BEST would select a model on test splits: set TEST.SPLIT to val, or leave it empty"
        )
    splits = evaluation_splits(cfg, training=True) if with_tests else ()
    if node.CHECKPOINT_BEST and with_tests and not splits:
        raise FXError("SOLVER.CHECKPOINT_BEST needs a validation split, but no dataset of DATASETS.TEST has one")
    if splits:
        strange = [name for name in splits if spec_of(name).name not in model.specs]
        if strange:
            raise FXError(f"DATASETS.TEST evaluates {strange}, but DATASETS.TRAIN creates no head for them")
    on_first(lambda: _check_images(cfg, data, splits))


def check_patterns(cfg: CfgNode, metrics: Sequence[str]) -> None:
    """FXError for a pattern of SOLVER.CHECKPOINT_BEST that matches no metric of the run's evaluations."""
    for pattern in cfg.SOLVER.CHECKPOINT_BEST:
        if not fnmatch.filter(metrics, pattern):
            raise FXError(
                f"SOLVER.CHECKPOINT_BEST {pattern!r} matches no metric of the models, datasets and tasks that are "
                f"evaluated: correct or remove it; available are {', '.join(_headlines(metrics))}"
            )


def _headlines(metrics: Sequence[str]) -> list[str]:
    """The first metric of each model, dataset and task."""
    first: dict[str, str] = {}
    for metric in metrics:
        if metric.count("/") == 3:
            first.setdefault(metric.rpartition("/")[0], metric)
    return list(first.values())


def _check_images(cfg: CfgNode, data: TrainData, splits: Iterable[str]) -> None:
    data.check_readable()
    for name in splits:
        check_test_split(cfg, name)


def check_norm(cfg: CfgNode, model: nn.Module) -> None:
    """FXError for norms that would fail in a step: BN with one image per process, or SyncBN on CPUs."""
    kinds = {type(module) for module in model.modules()}
    if nn.SyncBatchNorm in kinds and cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        raise FXError("MODEL.SEG.NORM SyncBN needs GPUs: use naiveSyncBN on CPUs, or GN")
    trains_masks = any(row["task"] == "seg" for row in cfg.SCHEDULE.STRATEGY)
    here = cfg.SCHEDULE.BATCH_SIZE.SEG // comm.get_world_size()
    if nn.BatchNorm2d in kinds and trains_masks and here == 1:
        raise FXError(
            "SCHEDULE.BATCH_SIZE.SEG gives each process one image, for which batch statistics (MODEL.SEG.NORM BN) "
            "are undefined: use a larger batch, or MODEL.SEG.NORM GN or SyncBN"
        )


def check_heads(model: FoundationX, schedule: PhaseSchedule) -> None:
    """Check that every pass has a head and every head a dataset row; warn about heads that no pass trains.

    Raises:
        FXError: a pass without a head, or a head without a dataset row.
    """
    heads = {(name, task) for task, part in HEAD_COMPONENTS.items() for name in getattr(model, part)}
    rows = {(name, task) for name, spec in model.specs.items() for task in spec.tasks}
    trained = {(phase.dataset, phase.task) for phase in schedule.phases}
    if heads != rows or not trained <= heads:
        wrong = sorted(heads ^ rows | trained - heads)
        raise FXError(f"heads and datasets do not match: {wrong} have only one of head and row, or a pass but no head")
    if heads - trained:
        names = ", ".join(f"{name}/{task}" for name, task in sorted(heads - trained))
        logger.warning("SCHEDULE.STRATEGY never trains the heads %s: their results are meaningless", names)


def checkpoint_bytes(cfg: CfgNode, model: nn.Module, teacher: nn.Module | None) -> int:
    """Size of a full checkpoint: student, teacher, and optimizer state once all parameters have been trained."""
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    states = _state_bytes(model) + (_state_bytes(teacher) if teacher is not None else 0)
    return states + moments_kept(cfg) * parameters


def _state_bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def checkpoints_kept(cfg: CfgNode) -> int:
    """Maximum number of a run's checkpoints on disk at a time, including the one being written."""
    node = cfg.SOLVER
    kept = cfg.SCHEDULE.CYCLES // node.CHECKPOINT_KEEP_CYCLES if node.CHECKPOINT_KEEP_CYCLES else 0
    return node.CHECKPOINTS_TO_KEEP + kept + len(node.CHECKPOINT_BEST) + 1


def check_disk(cfg: CfgNode, model: nn.Module, teacher: nn.Module | None) -> None:
    """Log the size of a checkpoint, and check that there is space for all that will be kept and the one being written.

    Raises:
        FXError: there is not enough free disk space in OUTPUT_DIR.
    """
    folder = Path(cfg.OUTPUT_DIR)
    size, count = checkpoint_bytes(cfg, model, teacher), checkpoints_kept(cfg)
    free = shutil.disk_usage(folder).free
    missing = count * size - _present_bytes([*numbered(folder).values(), *folder.glob(BEST)]) - free
    logger.info("a checkpoint takes %.3f GB; up to %d are on disk at a time", size / 1e9, count)
    if missing > 0:
        raise FXError(
            f"OUTPUT_DIR {folder}: {count} checkpoints of {size / 1e9:.2f} GB need {math.ceil(missing / 1e6)} MB "
            "more than is free: free some space, or keep fewer (SOLVER.CHECKPOINTS_TO_KEEP, CHECKPOINT_KEEP_CYCLES, "
            "CHECKPOINT_BEST)"
        )


def _present_bytes(paths: Iterable[Path]) -> int:
    """Disk usage of files; hard links to the same file count once."""
    return sum({(found.st_dev, found.st_ino): found.st_size for found in (path.stat() for path in paths)}.values())


def check_components(model: nn.Module) -> None:
    """ValueError if a child of the model is not one of COMPONENTS, so no phase could lock it."""
    strange = [name for name, _ in model.named_children() if name not in COMPONENTS]
    if strange:
        raise ValueError(f"children {strange} are not among COMPONENTS {COMPONENTS}: no phase could lock them")
