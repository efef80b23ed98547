"""What a layout makes of a source's state dict, and how several names of one tensor become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Renamed:
    """A state dict under this package's names.

    Attributes:
        layout: what the source was taken for.
        state: our name -> tensor; several names may share one tensor.
        unknown: names of the source that the layout does not know.
        unused: names the layout knows to have no place here.
        notes: one sentence for everything that was done beyond renaming, or that is odd about the source.
    """

    layout: str
    state: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Rename = Callable[[str], Iterable[str] | None]
"""Name of the source -> our names; none for a tensor without a place here, None for an unknown name."""


def rename_all(layout: str, source: Mapping[str, Tensor], rename: Rename) -> Renamed:
    """Apply a rule to every name. Where several names claim one place the first in the source's order holds it.

    Names of one tensor that hold different values are noted: the source says one parameter is two.
    """
    result = Renamed(layout)
    holder: dict[str, str] = {}
    disagreeing: list[str] = []
    for key, tensor in source.items():
        targets = rename(key)
        if targets is None:
            result.unknown.append(key)
            continue
        targets = tuple(targets)
        if not targets:
            result.unused.append(key)
        for name in targets:
            first = holder.setdefault(name, key)
            if first == key:
                result.state[name] = tensor
            elif not same(result.state[name], tensor):
                disagreeing.append(f"{key} differs from {first}")
    if disagreeing:
        more = f" and {len(disagreeing) - 1} more" if len(disagreeing) > 1 else ""
        result.notes.append(f"names of one tensor disagree, the first was taken: {disagreeing[0]}{more}")
    return result


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in shape and value; tensors that share memory, as aliases in a file do, are not read."""
    return a is b or (a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b)))
