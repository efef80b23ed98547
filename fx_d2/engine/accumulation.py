"""A step's batch in parts: as many images at a time as the memory holds, with the gradients of the whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fx_d2.batch import Batch
from fx_d2.layers.processes import Part, part_of_batch, shared_numbers
from fx_d2.modeling import FoundationX
from fx_d2.structures import TASKS, FXError

logger = logging.getLogger(__name__)


def part_sizes(images: int, most: int) -> list[int]:
    """Images of each part: as few parts as `most` images a part allow (0 = any number), as equal as can be."""
    count = -(-images // most) if most else 1
    return [images * (k + 1) // count - images * k // count for k in range(count)]


def split_batch(batch: Batch, most: int, device: torch.device) -> list[tuple[Batch, Part | None]]:
    """The parts of a process's batch in order, and what their losses must know of the whole.

    A collective call where there is more than one part (processes have batches of one size), and in localization, whose
    losses need numbers of all processes on the host: asked for here, they do not wait for a forward pass.

    Args:
        batch: of one task, still where it was read: its counts are asked for, and must not wait for a device.
        most: images a part, SOLVER.MICRO_BATCH of the task; 0 = no limit.
        device: over which the processes talk.

    Returns:
        (part of the batch, what it must know); the whole batch and None where it is not divided and alone.
    """
    sizes = part_sizes(len(batch), most)
    if len(sizes) == 1 and not (comm.get_world_size() > 1 and batch.one("task") == "loc"):
        return [(batch, None)]
    whole, largest = shared_numbers(*_counted(batch), device)
    parts: list[tuple[Batch, Part | None]] = []
    start = 0
    for size in sizes:
        parts.append((batch.part(start, start + size), Part(size / len(batch), whole, largest)))
        start += size
    return parts


def add_gradients(
    model: nn.Module,
    parts: Sequence[tuple[Batch, Part | None]],
    losses_of: Callable[[Batch], Mapping[str, Tensor]],
    scaler: torch.amp.GradScaler,
) -> dict[str, Tensor]:
    """Forward and backward of each part; processes exchange gradients once, with the last.

    Args:
        model: as the processes share it.
        parts: from `split_batch`.
        losses_of: runs `model`; the terms of a part's loss.
        scaler: of the loss.

    Returns:
        The terms of the whole batch's loss, without a graph.
    """
    names: list[str] = []
    sums: list[Tensor] = []
    for place, (batch, part) in enumerate(parts, 1):
        last = place == len(parts)
        alone = nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with part_of_batch(part), alone:
            losses = losses_of(batch)
            names, terms = list(losses), torch.stack(list(losses.values()))
            if part is not None:
                terms = terms * part.share
            scaler.scale(terms.sum()).backward()
        sums.append(terms.detach())
    total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
    return dict(zip(names, total.unbind(), strict=True))


def _counted(batch: Batch) -> tuple[int, int]:
    """(what the task's losses are divided by, boxes of the fullest image, at least 1) of a process's batch."""
    if batch.one("task") == "cls":
        return int(batch.tensors["labels"].isnan().logical_not().sum()), 1
    return sum(batch.counts), max((1, *batch.counts))


def check_parts(cfg: CfgNode, model: FoundationX) -> None:
    """Refuse parts that cannot be computed; warn where parts answer differently from the whole.

    Raises:
        FXError: SOLVER.MICRO_BATCH is negative, or a part of one image meets the segmentation decoder's batch norms.
    """
    trained = {row["task"] for row in cfg.SCHEDULE.STRATEGY} & {task for s in model.specs.values() for task in s.tasks}
    for task in TASKS:
        sizes, key = _sizes_of(cfg, task), f"SOLVER.MICRO_BATCH.{task.upper()}"
        if len(sizes) == 1 or task not in trained:
            continue
        decoder = list(model.seg_decoder.modules()) if task == "seg" and model.seg_decoder is not None else []
        if min(sizes) == 1 and any(type(module) is nn.BatchNorm2d for module in decoder):
            raise FXError(
                f"{key} {cfg.SOLVER.MICRO_BATCH.SEG} makes parts of one image, of which batch statistics "
                "(MODEL.SEG.NORM BN) cannot be taken: use larger parts, or MODEL.SEG.NORM GN"
            )
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in (*model.backbone.modules(), *decoder))
        changed = ["Dice"] * (task == "seg") + ["batch norms"] * norms
        if changed:
            what = " and ".join(changed)
            logger.warning("%s: %s: of %d images at a time, not of %d", key, what, max(sizes), sum(sizes))


def _sizes_of(cfg: CfgNode, task: str) -> list[int]:
    """Images of each part of a process's batch; FXError for a negative SOLVER.MICRO_BATCH."""
    most: Mapping[str, int] = cfg.SOLVER.MICRO_BATCH
    if most[task.upper()] < 0:
        raise FXError(f"SOLVER.MICRO_BATCH.{task.upper()} is {most[task.upper()]}: images a part, or 0 for all")
    return part_sizes(cfg.SCHEDULE.BATCH_SIZE[task.upper()] // comm.get_world_size(), most[task.upper()])
