"""Values that all ranks of a run, and all micro-batches of a step, must share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from detectron2.utils import comm
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """What the losses of a micro-batch must know of the rank's whole batch and of the other ranks' batches.

    Attributes:
        share: fraction of the rank's images that are in the micro-batch, in (0, 1].
        count: `shared_count` of the whole batch (known labels, or boxes), on the host; float64, so that multiplying by
            `share` loses no precision.
        largest: `largest_over_processes` of the whole batch.
    """

    share: float
    count: Tensor
    largest: int


_part: ContextVar[Part | None] = ContextVar("part", default=None)


@contextmanager
def part_of_batch(part: Part | None) -> Iterator[None]:
    """Inside, `shared_count` and `largest_over_processes` return the values of the whole batch, so the micro-batches'
    losses, weighted by their shares, add up to its loss. None: the batch is not split, and the functions communicate.
    """
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def shared_count(count: Tensor) -> Tensor:
    """Divisor of a sum over this rank's items that makes the average over ranks the mean over all items.

    A collective call, except inside `part_of_batch`.

    Args:
        count: number of items on this rank, a scalar.

    Returns:
        Scalar: the number of items on all ranks, at least one, divided by the world size.
    """
    part = _part.get()
    if part is not None:
        return part.count * part.share
    world = comm.get_world_size()
    if world == 1:
        return count.clamp(min=1)
    total = count.detach().clone()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / world


def largest_over_processes(value: int, device: torch.device) -> int:
    """Maximum of a value over ranks. A collective call on `device`, except inside `part_of_batch`."""
    part = _part.get()
    if part is not None:
        return part.largest
    if comm.get_world_size() == 1:
        return value
    largest = torch.tensor(value, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def shared_numbers(count: int, largest: int, device: torch.device) -> tuple[Tensor, int]:
    """`shared_count` and `largest_over_processes` in one collective call on `device`, with both results on the host.

    Called before a step's work is queued, it is the step's only collective that synchronises with the device.

    Returns:
        A float64 scalar, and the maximum.
    """
    own = torch.tensor([count, largest])
    rows = [own]
    if comm.get_world_size() > 1:
        own = own.to(device)
        rows = [torch.empty_like(own) for _ in range(comm.get_world_size())]
        torch.distributed.all_gather(rows, own)
    table = torch.stack(rows).cpu()
    return table[:, 0].sum().clamp(min=1).double() / len(table), int(table[:, 1].max())


def copy_from_first(tensors: list[Tensor]) -> None:
    """Broadcast rank 0's values of tensors of one dtype to all ranks, in one collective call."""
    if comm.get_world_size() == 1 or not tensors:
        return
    joined = torch.cat([x.flatten() for x in tensors])
    torch.distributed.broadcast(joined, 0)
    parts = joined.split([x.numel() for x in tensors])
    torch._foreach_copy_(tensors, [part.view_as(x) for part, x in zip(parts, tensors, strict=True)])
