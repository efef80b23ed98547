"""`torch.compile` of the layers whose inputs keep one shape through a training: MODEL.COMPILE."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn

from fx_d2.modeling import FoundationX
from fx_d2.modeling.detr.encoder import EncoderLayer
from fx_d2.modeling.segmentation import SegDecoder
from fx_d2.structures import FXError

logger = logging.getLogger(__name__)

VARIANTS = 128
"""Compiled forms that torch may keep of one class's forward: one for each size, shift, frozen or learning, with and
without gradient. At its own limit of 8 it would go on uncompiled."""


def compile_layers(model: FoundationX, backend: str) -> None:
    """Compile, each when it first runs, the trunk's blocks, the encoder's layers and the segmentation decoder.

    Layers of one class and shape share what is compiled, so that the time it takes does not grow with their number.
    Names, parameters and the rest of the model stay as they are. Localization decoders are left alone: the number of
    their queries changes with the boxes of a batch. Evaluations run uncompiled.

    Args:
        model: changed in place.
        backend: of `torch.compile`; empty = nothing is done.

    Raises:
        FXError: torch has no such backend.
    """
    if not backend:
        return
    if backend not in torch.compiler.list_backends(()):
        known = torch.compiler.list_backends()
        raise FXError(f"MODEL.COMPILE is {backend!r}: leave it empty, or choose a backend of torch.compile, {known}")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # With several processes torch would cut each layer where a bucket of gradients is full, to send it earlier. A layer
    # is small: what is fused stays whole, and the buckets are sent between layers.
    torch._dynamo.config.optimize_ddp = False
    trunk = model.backbone.trunk
    layers = [*repeated_blocks(trunk)] or [trunk]
    layers += [part for part in model.modules() if isinstance(part, (EncoderLayer, SegDecoder))]
    for layer in layers:
        layer.compile(backend=backend, dynamic=False)
    logger.info("MODEL.COMPILE: %d layers are compiled by %s, each when it first runs", len(layers), backend)


def repeated_blocks(trunk: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a timm trunk: the innermost modules that stand in a row with others of their own class."""
    for row in trunk.modules():
        if _is_row(row) and not any(_is_row(part) for block in row.children() for part in block.modules()):
            yield from row.children()


def _is_row(module: nn.Module) -> bool:
    """Whether it is a list of timm's modules, all of one class."""
    kinds = {type(part) for part in module.children()}
    listed = isinstance(module, (nn.Sequential, nn.ModuleList)) and len(kinds) == 1
    return listed and kinds.pop().__module__.startswith("timm.models.")
