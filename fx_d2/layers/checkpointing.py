"""Activation checkpointing: recompute a layer in the backward pass instead of keeping its activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, recompute: bool, *args: Any) -> Any:
    """The layer's output; with `recompute`, only its inputs are kept for the backward pass (when grad is enabled).

    RNG and autocast state are restored for the recomputation.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False)
    return layer(*args)
