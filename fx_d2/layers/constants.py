"""Cached tensors that depend only on shapes and settings."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")

KEPT = 8
"""Results cached per function, least recently used dropped first: images of many sizes must not fill the memory."""


def constant(function: Callable[P, tuple[Tensor, ...]]) -> Callable[P, tuple[Tensor, ...]]:
    """Cache the tensors returned by a function whose arguments, including the device, are hashable.

    The results are computed under no_grad, belong to no module (so copies and checkpoints do not contain them), and
    must not be modified in place. Nothing is cached while torch compiles or exports, or under a fake tensor mode.
    """
    kept: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    @functools.wraps(function)
    def remembering(*args: P.args, **kwargs: P.kwargs) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        key = (args, tuple(kwargs.items()))
        # Taken out, and put back as the last: another thread may drop or replace it at any moment.
        made = kept.pop(key, None)
        if made is None:
            # A tensor created in inference mode could not be used in a training step later.
            with torch.inference_mode(False), torch.no_grad():
                made = function(*args, **kwargs)
            if not all(type(x) is Tensor for x in made):
                return made
        kept[key] = made
        if len(kept) > KEPT:
            kept.popitem(last=False)
        return made

    return remembering
