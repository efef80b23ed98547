"""Result of converting a state dict, and renaming that merges several names of one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Renamed:
    """A state dict under this package's names.

    Attributes:
        layout: the recognised layout of the source.
        state: our name -> tensor; several names may share one tensor.
        unknown: names of the source that the layout does not contain.
        unused: names of the layout without a counterpart in the model.
        notes: one sentence for each change beyond renaming and each inconsistency of the source.
    """

    layout: str
    state: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Rename = Callable[[str], Iterable[str] | None]
"""Name in the source -> our names; empty for a tensor without a counterpart, None for an unknown name."""


def rename_all(layout: str, source: Mapping[str, Tensor], rename: Rename) -> Renamed:
    """Rename every tensor. If several names map to one of ours, the first in the source's order is used.

    A note is added if such names hold different values.
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
        result.notes.append(f"names of one tensor hold different values, the first was used: {disagreeing[0]}{more}")
    return result


def same(a: Tensor, b: Tensor) -> bool:
    """Whether shapes and values are equal; values are not compared if the tensors share memory, as aliases do."""
    return a is b or (a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b)))
