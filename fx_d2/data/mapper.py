"""From a dataset dict to what the model gets: training and evaluation samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from fvcore.transforms.transform import TransformList

from fx_d2.data.augmentation import ResizeTransform, TaskAugmentation, build_augmentation, split_grid
from fx_d2.data.cache import read_record, resize_image
from fx_d2.data.masks import Rle, decode_masks, image_masks
from fx_d2.structures import DatasetSpec, FXError

MIN_VISIBLE = 0.1
"""Share of a box's area that must remain in the picture after a crop or shift for the box to be kept."""

_UNKNOWN = float("nan")
_FIXED_VALUE = {"ignore": _UNKNOWN, "zeros": 0.0, "ones": 1.0}


class TrainMapper:
    """Reads, augments and formats one training image for one task.

    `mapper(record, seed)` is a pure function: the same record and seed give bit-equal tensors, in any worker.
    """

    @configurable
    def __init__(
        self,
        *,
        spec: DatasetSpec,
        task: str,
        augmentation: TaskAugmentation,
        teacher_view: str = "photometric",
        read_size: int = 0,
        dtype: str = "uint8",
    ) -> None:
        """See `from_config`: `TrainMapper(cfg, spec, task)`.

        Args:
            spec: the dataset's row.
            task: "cls", "loc" or "seg".
            augmentation: geometry and photometry of that task.
            teacher_view: "same", or "photometric": one more image of equal geometry and its own photometry.
            read_size: shorter side in pixels that images are reduced to when they are read; 0: as stored.
            dtype: of the images, "uint8" or "float32", both in 0..255.
        """
        if teacher_view not in ("same", "photometric"):
            raise FXError(f"INPUT.TEACHER_VIEW must be 'same' or 'photometric', not {teacher_view!r}")
        self.spec, self.task, self.augmentation, self.teacher_view = spec, task, augmentation, teacher_view
        self.read_size, self.dtype = read_size, _checked_dtype(dtype)

    @classmethod
    def from_config(cls, cfg: CfgNode, spec: DatasetSpec, task: str) -> dict[str, Any]:
        """Arguments from INPUT. The teacher's own view is made only when there is a teacher to see it."""
        teacher = cfg.MODEL.TEACHER.ENABLED and cfg.MODEL.TEACHER.CONSISTENCY > 0
        return {
            "spec": spec,
            "task": task,
            "augmentation": build_augmentation(cfg, task, spec),
            "teacher_view": cfg.INPUT.TEACHER_VIEW if teacher else "same",
            "read_size": cfg.INPUT.READ_SIZE,
            "dtype": cfg.INPUT.DTYPE,
        }

    def __call__(self, record: dict[str, Any], seed: int) -> dict[str, Any]:
        """One sample.

        Args:
            record: a Detectron2 dict annotated for the task.
            seed: 0 .. 2**32 - 1; all randomness of the sample follows from it.

        Returns:
            dataset, task, image_id, file_name, height, width (original pixels), image uint8 or float32 (1, H, W) in
            0..255, teacher_image (the same type; only with teacher_view "photometric"), and by task:
            cls: labels float32 (C,), NaN = unknown;
            loc: instances with gt_boxes (float32 xyxy, network pixels) and gt_classes (int64);
            seg: masks bool (C, H, W), mask_known bool (C,), mask_valid bool (H, W), False = ignore.

        Raises:
            FXError: naming the file, when it cannot be read or has not the annotated size.
        """
        image = read_record(record, self.read_size, self.dtype)
        with _numpy_seed(seed):
            small, transform, flipped = self.augmentation.geometry(image)
            transform = _from_original(record, image) + transform
            sample = _header(record) | {"task": self.task, "image": _to_tensor(self.augmentation.photometry(small))}
            if self.teacher_view == "photometric":
                sample["teacher_image"] = _to_tensor(self.augmentation.photometry(small))
            classes = len(self.spec.classes(self.task))
            order = self.spec.flip_permutation(self.task) if flipped else list(range(classes))
            if self.task == "cls":
                labels = apply_label_policy(record["labels"], self.spec, training=True)
                sample["labels"] = torch.from_numpy(labels[order])
            elif self.task == "loc":
                sample["instances"] = _instances(record["annotations"], transform, small.shape, order)
            else:
                sample |= _mask_targets(record, transform, small.shape, order)
        return sample


class EvalMapper:
    """Reads and resizes one image without augmentation and hands on its whole annotation in original pixels."""

    @configurable
    def __init__(self, *, spec: DatasetSpec, size: tuple[int, int], read_size: int = 0, dtype: str = "uint8") -> None:
        """See `from_config`: `EvalMapper(cfg, spec)`. size: the network's (height, width); others: `TrainMapper`."""
        self.spec, self.size, self.read_size, self.dtype = spec, size, read_size, _checked_dtype(dtype)

    @classmethod
    def from_config(cls, cfg: CfgNode, spec: DatasetSpec) -> dict[str, Any]:
        """Arguments from INPUT."""
        sizes = {"size": tuple(cfg.INPUT.SIZE), "read_size": cfg.INPUT.READ_SIZE}
        return {"spec": spec, **sizes, "dtype": cfg.INPUT.DTYPE}

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """One sample.

        Returns:
            dataset, image_id, file_name, height, width, image uint8 or float32 (1, H, W) in 0..255 at the network's
            size, annotated, annotations (as in the record), masks (list of RLE or None, or None), ignore_mask,
            patient_id, meta, and, where annotated for cls, labels float32 (C,), NaN = unknown (an uncertain label of
            policy "soft" included).

        Raises:
            FXError: naming the file, when it cannot be read or has not the annotated size.
        """
        image = read_record(record, self.read_size, self.dtype)
        sample = _header(record) | {"image": _to_tensor(resize_image(image, self.size))}
        kept = ("annotated", "annotations", "ignore_mask", "patient_id", "meta")
        sample |= {key: record[key] for key in kept} | {"masks": image_masks(record)}
        if record["annotated"]["cls"]:
            sample["labels"] = torch.from_numpy(apply_label_policy(record["labels"], self.spec, training=False))
        return sample


def apply_label_policy(labels: Sequence[float | None], spec: DatasetSpec, *, training: bool) -> np.ndarray:
    """Labels as float32 (C,) with NaN for unknown, after the row's policies.

    "soft" draws from numpy's global generator in training, anew at each call; in evaluation it is unknown.
    """
    out = np.empty(len(labels), dtype=np.float32)
    for i, value in enumerate(labels):
        if value is None:
            out[i] = _FIXED_VALUE[spec.blank]
        elif value == -1 and spec.uncertain == "soft":
            out[i] = np.random.uniform(*spec.soft_range) if training else _UNKNOWN
        else:
            out[i] = _FIXED_VALUE[spec.uncertain] if value == -1 else value
    return out


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator inside the block and put its state back after."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _checked_dtype(dtype: str) -> str:
    if dtype not in ("uint8", "float32"):
        raise FXError(f"INPUT.DTYPE must be 'uint8' or 'float32', not {dtype!r}")
    return dtype


def _from_original(record: dict[str, Any], image: np.ndarray) -> TransformList:
    """The change from the annotation's pixels to those of the image that was read."""
    old = (record["height"], record["width"])
    return TransformList([ResizeTransform(old=old, new=image.shape)] if image.shape != old else [])


def _header(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("dataset", "image_id", "file_name", "height", "width")}


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W) to a tensor (1, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image)[None])


def _instances(
    annotations: list[dict[str, Any]], transform: TransformList, shape: tuple[int, ...], order: list[int]
) -> Instances:
    """Boxes moved into the network's picture, clipped; those with less than MIN_VISIBLE of their area are dropped."""
    height, width = shape
    boxes = np.array([row["bbox"] for row in annotations], dtype=np.float64).reshape(-1, 4)
    classes = np.array([order[row["category_id"]] for row in annotations], dtype=np.int64)
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.asarray(transform.apply_box(boxes)).reshape(-1, 4)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    boxes = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
    left = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    keep = (left > 0) & (left >= MIN_VISIBLE * area)
    out = Instances((height, width))
    out.gt_boxes = Boxes(torch.from_numpy(boxes[keep]))
    out.gt_classes = torch.from_numpy(classes[keep])
    return out


def _mask_targets(
    record: dict[str, Any], transform: TransformList, shape: tuple[int, ...], order: list[int]
) -> dict[str, torch.Tensor]:
    """masks, mask_known and mask_valid; pixels that come from outside the picture are background."""
    masks = image_masks(record) or []
    rles = [masks[i] for i in order]
    known = [i for i, rle in enumerate(rles) if rle is not None]
    wanted = [rle for rle in [*rles, record["ignore_mask"]] if rle is not None]
    planes = _move_masks(wanted, transform, record["file_name"])
    targets = np.zeros((len(rles), *shape), dtype=bool)
    targets[known] = planes[: len(known)]
    valid = planes[-1] == 0 if record["ignore_mask"] is not None else np.ones(shape, dtype=bool)
    mask_known = torch.zeros(len(rles), dtype=torch.bool)
    mask_known[known] = True
    return {"masks": torch.from_numpy(targets), "mask_known": mask_known, "mask_valid": torch.from_numpy(valid)}


def _move_masks(rles: list[Rle], transform: TransformList, where: str) -> np.ndarray:
    """Masks of one image, moved: uint8 0/1 (N, H, W).

    Eight masks travel as the bits of one byte image: nearest-neighbour transforms never mix values, and each byte
    image costs what one mask would.
    """
    rows, columns, rest = split_grid(transform, rles[0]["size"])
    stack = decode_masks(rles, where, rows, columns).transpose(2, 0, 1)
    moved = []
    for start in range(0, len(rles), 8):
        chunk = stack[start : start + 8]
        packed = np.zeros(chunk.shape[1:], dtype=np.uint8)
        for bit, mask in enumerate(chunk):
            packed |= mask << np.uint8(bit)
        packed = rest.apply_segmentation(packed)
        moved += [(packed >> np.uint8(bit)) & np.uint8(1) for bit in range(len(chunk))]
    return np.stack(moved)
