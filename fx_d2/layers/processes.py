"""Numbers that all processes of a run, and all parts of a step's batch, must share."""

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
    """What the losses of a part of a process's batch must know of the whole, and of the other processes' batches.

    Attributes:
        share: images of the part among those of the process, in (0, 1].
        count: `shared_count` of what the whole has (known labels, or boxes), on the host; float64: a part of it must be
            exact.
        largest: `largest_over_processes` of the whole.
    """

    share: float
    count: Tensor
    largest: int


_part: ContextVar[Part | None] = ContextVar("part", default=None)


@contextmanager
def part_of_batch(part: Part | None) -> Iterator[None]:
    """Inside, the functions below answer for the whole batch, so that the parts' results, weighted by their shares,
    add up to its result. None: the batch is not divided, and the functions ask the other processes themselves.
    """
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def shared_count(count: Tensor) -> Tensor:
    """What a sum over this process's items is divided by, so that the processes' results average to the mean of all.

    A collective call, except inside `part_of_batch`.

    Args:
        count: number of this process's items, a scalar.

    Returns:
        Scalar: the items of all processes, at least one, divided by the number of processes.
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
    """The largest of all processes' values. A collective call, except inside `part_of_batch`, on `device`."""
    part = _part.get()
    if part is not None:
        return part.largest
    if comm.get_world_size() == 1:
        return value
    largest = torch.tensor(value, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def shared_numbers(count: int, largest: int, device: torch.device) -> tuple[Tensor, int]:
    """`shared_count` and `largest_over_processes` of two numbers in one exchange, and both on the host.

    A collective call, over `device`. Made before a step's work is queued, it is the only one that waits for the device.

    Returns:
        A float64 scalar, and the largest.
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
    """Give every process the first one's values of tensors of one type, in one exchange. A collective call."""
    if comm.get_world_size() == 1 or not tensors:
        return
    joined = torch.cat([x.flatten() for x in tensors])
    torch.distributed.broadcast(joined, 0)
    parts = joined.split([x.numel() for x in tensors])
    torch._foreach_copy_(tensors, [part.view_as(x) for part, x in zip(parts, tensors, strict=True)])
