"""Forward pass of the shared components for one task: inputs of the heads, and tensors of the consistency losses."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fx_d2.batch import Batch
from fx_d2.layers.precision import at_least_float32
from fx_d2.modeling.detr.encoder import LocEncoder, Memory

if TYPE_CHECKING:
    from fx_d2.modeling.meta_arch import FoundationX


class SharedPass:
    """Outputs of the shared components for one batch. The backbone runs at once, the others lazily and at most once.

    Args:
        model: has the components of the task.
        batch: of one dataset, on the model's device.
        task: decides which tensor represents a component in `compared`.
        view: key of the images to use; falls back to "image" if the samples do not have it.
    """

    def __init__(self, model: FoundationX, batch: Batch, task: str, view: str = "image") -> None:
        self.dataset, self.task = batch.one("dataset"), task
        self._model = model
        self.features, self.padding = model.features(batch, view)

    @cached_property
    def pooled(self) -> Tensor:
        """(B, C), the input of classification heads."""
        return self._model.backbone.pooled(self.features)

    @cached_property
    def levels(self) -> list[Tensor]:
        """Backbone features for the localization encoder."""
        return self._model.backbone.levels(self.features)

    @cached_property
    def memory(self) -> Memory:
        """The input of localization decoders."""
        return cast(LocEncoder, self._model.loc_encoder)(self.levels, self.padding)

    @cached_property
    def fused(self) -> Tensor:
        """The input of segmentation heads."""
        return self._model.fuse(self.features, self._model.find_own_regions(self.dataset, self.features, self.padding))

    def compared(self, component: str) -> Tensor:
        """The tensor of a shared component that enters its consistency loss."""
        if self.task == "cls":
            return self.pooled
        if self.task == "loc":
            return self.memory.tokens if component == "loc_encoder" else _flat(self.levels)
        return _unit(self.fused if component == "seg_decoder" else self.features[f"stage{len(self.features) - 1}"])


def _flat(levels: list[Tensor]) -> Tensor:
    """Maps (B, C_i, H_i, W_i) flattened and concatenated: (B, sum of C_i * H_i * W_i)."""
    return torch.cat([x.flatten(1) for x in levels], dim=1)


def _unit(x: Tensor) -> Tensor:
    """Channel vectors scaled to unit length, which makes the loss independent of the maps' magnitude."""
    return F.normalize(at_least_float32(x), dim=1)
