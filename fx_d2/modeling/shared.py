"""A batch's way through the shared parts in one task: what heads read, and what student and teacher compare."""

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
    """The shared parts on one batch. The trunk runs at once, any other part when it is first asked for, and once.

    Args:
        model: whose parts run; it has those of the task.
        batch: of one dataset, on the model's device.
        task: decides which tensor stands for a component in `compared`.
        view: key of the pictures to read; falls back to "image" where the samples have no own view.
    """

    def __init__(self, model: FoundationX, batch: Batch, task: str, view: str = "image") -> None:
        self.dataset, self.task = batch.one("dataset"), task
        self._model = model
        self.features, self.padding = model.features(batch, view)

    @cached_property
    def pooled(self) -> Tensor:
        """(B, C): what classification heads read."""
        return self._model.backbone.pooled(self.features)

    @cached_property
    def levels(self) -> list[Tensor]:
        """Maps of the trunk that the localization encoder reads."""
        return self._model.backbone.levels(self.features)

    @cached_property
    def memory(self) -> Memory:
        """What localization decoders read."""
        return cast(LocEncoder, self._model.loc_encoder)(self.levels, self.padding)

    @cached_property
    def fused(self) -> Tensor:
        """What segmentation heads read."""
        return self._model.fuse(self.features, self._model.find_own_regions(self.dataset, self.features, self.padding))

    def compared(self, component: str) -> Tensor:
        """The tensor of a shared component in which student and teacher are compared."""
        if self.task == "cls":
            return self.pooled
        if self.task == "loc":
            return self.memory.tokens if component == "loc_encoder" else _flat(self.levels)
        return _unit(self.fused if component == "seg_decoder" else self.features[f"stage{len(self.features) - 1}"])


def _flat(levels: list[Tensor]) -> Tensor:
    """Maps (B, C_i, H_i, W_i) as one (B, sum of C_i * H_i * W_i): positions and channels in a fixed order."""
    return torch.cat([x.flatten(1) for x in levels], dim=1)


def _unit(x: Tensor) -> Tensor:
    """Each position's channel vector scaled to length 1, so that the maps' magnitude does not matter."""
    return F.normalize(at_least_float32(x), dim=1)
