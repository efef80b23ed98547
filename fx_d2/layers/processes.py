"""Numbers that all processes of a run must share."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor


def shared_count(count: Tensor) -> Tensor:
    """What a sum over this process's items is divided by, so that the processes' results average to the mean of all.

    A collective call.

    Args:
        count: number of this process's items, a scalar.

    Returns:
        Scalar: the items of all processes, at least one, divided by the number of processes.
    """
    world = comm.get_world_size()
    if world == 1:
        return count.clamp(min=1)
    total = count.detach().clone()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / world


def largest_over_processes(value: int, device: torch.device) -> int:
    """The largest of all processes' values. A collective call, over tensors on `device`."""
    if comm.get_world_size() == 1:
        return value
    largest = torch.tensor(value, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)
