"""Recomputing a layer in the backward pass instead of keeping what it computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, recompute: bool, *args: Any) -> Any:
    """What the layer gives; with `recompute`, and where a graph is made, only its inputs are kept for the gradient.

    The layer's draws and autocast are the same the second time.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False)
    return layer(*args)
