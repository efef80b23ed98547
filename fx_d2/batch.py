"""A batch as a few tensors: collated in the loader worker, moved to the device in one go."""

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
"""Keys of a sample's images."""

TARGETS: dict[str, tuple[str, ...]] = {"cls": ("labels",), "loc": (), "seg": ("masks", "mask_known", "mask_valid")}
"""Keys of a training sample's target tensors, by task; boxes are in `instances`."""

BOXES = ("boxes", "classes")
"""Keys of the batch tensors with one row per box instead of one per sample."""


@dataclass(frozen=True)
class Batch:
    """B samples. A worker passes on one block of memory per tensor, whatever B is.

    Attributes:
        samples: the samples' remaining fields, such as file names and sizes.
        sizes: (height, width) of each image within its canvas.
        counts: number of boxes per sample; empty except for localization.
        tensors: "image" and, if the samples have one, "teacher_image" (B, 1, H, W), in the samples' dtype, each in the
            upper left corner of a zero-padded canvas; "padding" (B, H, W) bool, True outside the images, only if their
            sizes differ; the keys of `TARGETS`, stacked; and for localization the concatenated boxes of all samples,
            "boxes" (N, 4) as (cx, cy, w, h) relative to the image size and "classes" (N,) int64.
    """

    samples: list[dict[str, Any]]
    sizes: list[tuple[int, int]]
    counts: tuple[int, ...]
    tensors: dict[str, Tensor]

    @classmethod
    def collate(cls, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Collate the mappers' samples; targets only if the samples have a "task"."""
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
        """The value that all samples share under a key; ValueError if they differ."""
        values = {x[key] for x in self.samples}
        if len(values) != 1:
            raise ValueError(f"a batch holds one {key}, not {sorted(values)}")
        return values.pop()

    def part(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop` as views, on the canvas of the whole batch."""
        own = slice(start, stop)
        boxes = slice(sum(self.counts[:start]), sum(self.counts[:stop]))
        tensors = {key: x[boxes if key in BOXES else own] for key, x in self.tensors.items()}
        return Batch(self.samples[own], self.sizes[own], self.counts[own], tensors)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; asynchronous from pinned memory."""
        return replace(self, tensors={k: x.to(device, non_blocking=True) for k, x in self.tensors.items()})

    def pin_memory(self) -> Batch:
        """The batch in pinned memory; called by DataLoader."""
        return replace(self, tensors={key: x.pin_memory() for key, x in self.tensors.items()})


def _stack(images: list[Tensor]) -> Tensor:
    """Stack (1, H, W) images, smaller ones padded at the right and bottom."""
    if len({x.shape for x in images}) == 1:
        return default_collate(images)  # allocates in shared memory in a worker
    height, width = (max(x.shape[axis] for x in images) for axis in (-2, -1))
    canvas = images[0].new_zeros(len(images), len(images[0]), height, width)
    for target, x in zip(canvas, images, strict=True):
        target[:, : x.shape[-2], : x.shape[-1]] = x
    return canvas


def _outside(sizes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """Padding mask (B, H, W): True outside the images."""
    padding = torch.ones(len(sizes), *like.shape[-2:], dtype=torch.bool, device=like.device)
    for mask, (height, width) in zip(padding, sizes, strict=True):
        mask[:height, :width] = False
    return padding


def _relative(instances: Instances) -> Tensor:
    """Ground-truth boxes of an image from absolute (x1, y1, x2, y2) to (cx, cy, w, h) relative to `image_size`."""
    height, width = instances.image_size
    corners = instances.gt_boxes.tensor
    return box_convert(corners / corners.new_tensor((width, height, width, height)), "xyxy", "cxcywh")
