"""`torch.compile` of the layers whose input shapes are static during training: MODEL.COMPILE."""

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
"""Recompile limit for the forward of one class: each size, window shift, frozen or trainable state, with and without
gradient, needs its own graph. At torch's default limit of 8 it would fall back to eager mode."""


def compile_layers(model: FoundationX, backend: str) -> None:
    """Compile backbone blocks, encoder layers and the segmentation decoder, each on its first call.

    Layers of the same class and shape share compiled code, so compile time does not grow with their number. Parameter
    names and the rest of the model are unchanged. Localization decoders are not compiled: their number of queries
    varies with the boxes in a batch. Evaluation runs in eager mode.

    Args:
        model: modified in place.
        backend: of `torch.compile`; empty = no compilation.

    Raises:
        FXError: torch has no such backend.
    """
    if not backend:
        return
    if backend not in torch.compiler.list_backends(()):
        known = torch.compiler.list_backends()
        raise FXError(f"MODEL.COMPILE is {backend!r}: leave it empty, or choose a backend of torch.compile, {known}")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # With several processes, Dynamo's DDP optimizer would split each graph at gradient bucket boundaries to overlap
    # communication. Layers are small: keep each graph whole; buckets are reduced between layers.
    torch._dynamo.config.optimize_ddp = False
    trunk = model.backbone.trunk
    layers = [*repeated_blocks(trunk)] or [trunk]
    layers += [part for part in model.modules() if isinstance(part, (EncoderLayer, SegDecoder))]
    for layer in layers:
        layer.compile(backend=backend, dynamic=False)
    logger.info("MODEL.COMPILE: %d layers will be compiled with %s, each on its first call", len(layers), backend)


def repeated_blocks(trunk: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a timm backbone: elements of the innermost sequences whose elements all have the same class."""
    for stage in trunk.modules():
        if _is_stage(stage) and not any(_is_stage(part) for block in stage.children() for part in block.modules()):
            yield from stage.children()


def _is_stage(module: nn.Module) -> bool:
    """Whether the module is a sequence of timm modules of one class."""
    kinds = {type(part) for part in module.children()}
    listed = isinstance(module, (nn.Sequential, nn.ModuleList)) and len(kinds) == 1
    return listed and kinds.pop().__module__.startswith("timm.models.")
