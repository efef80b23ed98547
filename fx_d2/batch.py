"""A batch as few tensors: put together where images are read, moved to the device at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.ops import box_convert

VIEWS = ("image", "teacher_image")
"""Keys of a sample's pictures."""

TARGETS: dict[str, tuple[str, ...]] = {"cls": ("labels",), "loc": (), "seg": ("masks", "mask_known", "mask_valid")}
"""Keys of a training sample's tensors, by task; boxes are `instances`."""

BOXES = ("boxes", "classes")
"""Keys of a batch's tensors that have a row for each box, not for each sample."""


@dataclass(frozen=True)
class Batch:
    """B samples. A worker hands over one block of memory for each tensor, whatever B is.

    Attributes:
        samples: what the samples hold beside pictures and tensors, such as file names and sizes.
        sizes: (height, width) of each picture in its canvas.
        counts: number of boxes of each sample; empty but for localization.
        tensors: "image" and, if the samples have one, "teacher_image" (B, 1, H, W), in the samples' type, each at the
            upper left of a canvas of zeros; "padding" (B, H, W) bool, True outside of the pictures, where these have
            different sizes; what `TARGETS` names, stacked; and for localization the boxes of all samples one after the
            other, "boxes" (N, 4) as (cx, cy, w, h) relative to the picture and "classes" (N,) int64.
    """

    samples: list[dict[str, Any]]
    sizes: list[tuple[int, int]]
    counts: tuple[int, ...]
    tensors: dict[str, Tensor]

    @classmethod
    def collate(cls, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Samples as the mappers give them; targets are taken from those that name their "task"."""
        sizes: list[tuple[int, int]] = [tuple(x["image"].shape[-2:]) for x in samples]
        tensors = {key: _stack([x[key] for x in samples]) for key in VIEWS if key in samples[0]}
        if len(set(sizes)) > 1:
            tensors["padding"] = _outside(sizes, tensors["image"])
        rest = [{k: v for k, v in x.items() if not isinstance(v, Tensor | Instances)} for x in samples]
        batch = cls(rest, sizes, (), tensors)
        if "task" not in samples[0]:
            return batch
        task = batch.one("task")
        tensors |= {key: default_collate([x[key] for x in samples]) for key in TARGETS[task]}
        if task != "loc":
            return batch
        instances = [x["instances"] for x in samples]
        tensors["classes"] = torch.cat([x.gt_classes for x in instances])
        tensors["boxes"] = torch.cat([_relative(x) for x in instances])
        return replace(batch, counts=tuple(map(len, instances)))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def one(self, key: str) -> str:
        """The samples' common word under a key; ValueError where they differ."""
        values = {x[key] for x in self.samples}
        if len(values) != 1:
            raise ValueError(f"a batch holds one {key}, not {sorted(values)}")
        return values.pop()

    def part(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop`, without copying; their canvas stays that of the whole batch."""
        own = slice(start, stop)
        boxes = slice(sum(self.counts[:start]), sum(self.counts[:stop]))
        tensors = {key: x[boxes if key in BOXES else own] for key, x in self.tensors.items()}
        return Batch(self.samples[own], self.sizes[own], self.counts[own], tensors)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory without waiting."""
        return replace(self, tensors={k: x.to(device, non_blocking=True) for k, x in self.tensors.items()})

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can read; DataLoader calls this."""
        return replace(self, tensors={key: x.pin_memory() for key, x in self.tensors.items()})


def _stack(pictures: list[Tensor]) -> Tensor:
    """(1, H, W) pictures, the smaller ones padded at the right and bottom."""
    if len({x.shape for x in pictures}) == 1:
        return default_collate(pictures)  # into shared memory, in a worker
    height, width = (max(x.shape[axis] for x in pictures) for axis in (-2, -1))
    canvas = pictures[0].new_zeros(len(pictures), len(pictures[0]), height, width)
    for place, x in zip(canvas, pictures, strict=True):
        place[:, : x.shape[-2], : x.shape[-1]] = x
    return canvas


def _outside(sizes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """True where a canvas shows no picture."""
    padding = torch.ones(len(sizes), *like.shape[-2:], dtype=torch.bool, device=like.device)
    for place, (height, width) in zip(padding, sizes, strict=True):
        place[:height, :width] = False
    return padding


def _relative(truth: Instances) -> Tensor:
    """An image's boxes, pixels of `image_size` as (x1, y1, x2, y2), as (cx, cy, w, h) in parts of its sides."""
    height, width = truth.image_size
    corners = truth.gt_boxes.tensor
    return box_convert(corners / corners.new_tensor((width, height, width, height)), "xyxy", "cxcywh")
