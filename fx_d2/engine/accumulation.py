"""Gradient accumulation: a batch processed in parts that fit into memory, with the gradients of the whole batch."""

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
    """Sizes of the fewest parts with at most `most` images each (0 = no limit), as equal as possible."""
    count = -(-images // most) if most else 1
    return [images * (k + 1) // count - images * k // count for k in range(count)]


def split_batch(batch: Batch, most: int, device: torch.device) -> list[tuple[Batch, Part | None]]:
    """Split a process's batch into parts, each with the statistics of the whole batch that its losses need.

    A collective call if there is more than one part (all processes have the same batch size), and in localization,
    whose losses need counts over all processes on the host: gathering them here avoids waiting for a forward pass.

    Args:
        batch: of one task, still on the CPU, so its counts can be read without synchronising with a device.
        most: maximum number of images per part, SOLVER.MICRO_BATCH of the task; 0 = no limit.
        device: used for the collective.

    Returns:
        Pairs (part of the batch, statistics of the whole). For an unsplit batch that needs no counts from other
        processes: the batch and None.
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
    """Forward and backward pass of each part; gradients are synchronised once, with the last part.

    Args:
        model: wrapped in DistributedDataParallel if there are several processes.
        parts: from `split_batch`.
        losses_of: runs `model` on a part and returns its loss terms.
        scaler: loss scaler.

    Returns:
        The loss terms of the whole batch, detached.
    """
    names: list[str] = []
    sums: list[Tensor] = []
    for number, (batch, part) in enumerate(parts, 1):
        last = number == len(parts)
        sync = nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with part_of_batch(part), sync:
            losses = losses_of(batch)
            names, terms = list(losses), torch.stack(list(losses.values()))
            if part is not None:
                terms = terms * part.share
            scaler.scale(terms.sum()).backward()
        sums.append(terms.detach())
    total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
    return dict(zip(names, total.unbind(), strict=True))


def _counted(batch: Batch) -> tuple[int, int]:
    """(normaliser of the task's losses, maximum number of boxes per image but at least 1) of a process's batch."""
    if batch.one("task") == "cls":
        return int(batch.tensors["labels"].isnan().logical_not().sum()), 1
    return sum(batch.counts), max((1, *batch.counts))


def check_parts(cfg: CfgNode, model: FoundationX) -> None:
    """Reject splits that cannot be computed, and warn about those whose result differs from that of the whole batch.

    Raises:
        FXError: SOLVER.MICRO_BATCH is negative, or a part of a single image would pass through batch norm in the
            segmentation decoder.
    """
    trained = {row["task"] for row in cfg.SCHEDULE.STRATEGY} & {task for s in model.specs.values() for task in s.tasks}
    for task in TASKS:
        sizes, key = _sizes_of(cfg, task), f"SOLVER.MICRO_BATCH.{task.upper()}"
        if len(sizes) == 1 or task not in trained:
            continue
        decoder = list(model.seg_decoder.modules()) if task == "seg" and model.seg_decoder is not None else []
        if min(sizes) == 1 and any(type(module) is nn.BatchNorm2d for module in decoder):
            raise FXError(
                f"{key} {cfg.SOLVER.MICRO_BATCH.SEG} creates parts of one image, for which batch statistics "
                "(MODEL.SEG.NORM BN) are undefined: use larger parts, or MODEL.SEG.NORM GN"
            )
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in (*model.backbone.modules(), *decoder))
        changed = ["Dice"] * (task == "seg") + ["batch norms"] * norms
        if changed:
            what = " and ".join(changed)
            logger.warning("%s: %s computed over %d images at a time, not %d", key, what, max(sizes), sum(sizes))


def _sizes_of(cfg: CfgNode, task: str) -> list[int]:
    """Sizes of the parts of a process's batch; FXError for a negative SOLVER.MICRO_BATCH."""
    most: Mapping[str, int] = cfg.SOLVER.MICRO_BATCH
    if most[task.upper()] < 0:
        raise FXError(f"SOLVER.MICRO_BATCH.{task.upper()} is {most[task.upper()]}: images per part, or 0 for all")
    return part_sizes(cfg.SCHEDULE.BATCH_SIZE[task.upper()] // comm.get_world_size(), most[task.upper()])
