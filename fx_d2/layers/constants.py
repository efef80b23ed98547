"""Tensors that depend on shapes and settings alone, computed once."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")

KEPT = 8
"""Results a function keeps, the last ones used: images of many sizes must not fill the memory."""


def constant(function: Callable[P, tuple[Tensor, ...]]) -> Callable[P, tuple[Tensor, ...]]:
    """Keep the tensors that a function of hashable arguments returned, the device among them.

    The results have no graph, belong to no module (so that copies and checkpoints do not hold them), and must not be
    written to. While torch compiles or exports a graph, or where fake tensors stand for real ones, nothing is kept.
    """
    kept: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    @functools.wraps(function)
    def remembering(*args: P.args, **kwargs: P.kwargs) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        key = (args, tuple(kwargs.items()))
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
        # A tensor made in inference mode could never take part in a training step.
        with torch.inference_mode(False), torch.no_grad():
            made = function(*args, **kwargs)
        if all(type(x) is Tensor for x in made):
            kept[key] = made
            if len(kept) > KEPT:
                kept.popitem(last=False)
        return made

    return remembering
