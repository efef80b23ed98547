"""Dataset mappers: from a dataset dict to a training or evaluation sample."""

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
"""Fraction of a box's area that must remain inside the image after augmentation for the box to be kept."""

_UNKNOWN = float("nan")
_FIXED_VALUE = {"ignore": _UNKNOWN, "zeros": 0.0, "ones": 1.0}


class TrainMapper:
    """Loads, augments and formats one training image for one task.

    `mapper(record, seed)` is a pure function: the same record and seed give bit-identical tensors in any worker.
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
            spec: the dataset row.
            task: "cls", "loc" or "seg".
            augmentation: geometric and photometric augmentation of that task.
            teacher_view: "same", or "photometric": a second image with the same geometry and independent photometry.
            read_size: shorter side in pixels to which images are downsized when loaded; 0: the stored size.
            dtype: image dtype, "uint8" or "float32", both in 0..255.
        """
        if teacher_view not in ("same", "photometric"):
            raise FXError(f"INPUT.TEACHER_VIEW must be 'same' or 'photometric', not {teacher_view!r}")
        self.spec, self.task, self.augmentation, self.teacher_view = spec, task, augmentation, teacher_view
        self.read_size, self.dtype = read_size, _checked_dtype(dtype)

    @classmethod
    def from_config(cls, cfg: CfgNode, spec: DatasetSpec, task: str) -> dict[str, Any]:
        """Arguments from INPUT. The teacher's view is generated only if the consistency loss is enabled."""
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
            seed: 0 .. 2**32 - 1; seeds all randomness of the sample.

        Returns:
            dataset, task, image_id, file_name, height, width (original pixels), image uint8 or float32 (1, H, W) in
            0..255, teacher_image (same shape and dtype; only with teacher_view "photometric"), and by task:
            cls: labels float32 (C,), NaN = unknown;
            loc: instances with gt_boxes (float32 xyxy, input pixels) and gt_classes (int64);
            seg: masks bool (C, H, W), mask_known bool (C,), mask_valid bool (H, W), False = ignore.

        Raises:
            FXError: the file cannot be read or its size differs from the annotation; the message names it.
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
    """Loads and resizes one image without augmentation; passes on its full annotation in original pixels."""

    @configurable
    def __init__(self, *, spec: DatasetSpec, size: tuple[int, int], read_size: int = 0, dtype: str = "uint8") -> None:
        """See `from_config`: `EvalMapper(cfg, spec)`.

        Args:
            spec: the dataset row.
            size: model input (height, width).
            read_size: see `TrainMapper`.
            dtype: see `TrainMapper`.
        """
        self.spec, self.size, self.read_size, self.dtype = spec, size, read_size, _checked_dtype(dtype)

    @classmethod
    def from_config(cls, cfg: CfgNode, spec: DatasetSpec) -> dict[str, Any]:
        """Arguments from INPUT."""
        sizes = {"size": tuple(cfg.INPUT.SIZE), "read_size": cfg.INPUT.READ_SIZE}
        return {"spec": spec, **sizes, "dtype": cfg.INPUT.DTYPE}

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """One sample.

        Returns:
            dataset, image_id, file_name, height, width, image uint8 or float32 (1, H, W) in 0..255 at the model's
            input size, annotated, annotations (as in the record), masks (list of RLE or None, or None), ignore_mask,
            patient_id, meta, and, if annotated for cls, labels float32 (C,), NaN = unknown (including uncertain labels
            under policy "soft").

        Raises:
            FXError: the file cannot be read or its size differs from the annotation; the message names it.
        """
        image = read_record(record, self.read_size, self.dtype)
        sample = _header(record) | {"image": _to_tensor(resize_image(image, self.size))}
        kept = ("annotated", "annotations", "ignore_mask", "patient_id", "meta")
        sample |= {key: record[key] for key in kept} | {"masks": image_masks(record)}
        if record["annotated"]["cls"]:
            sample["labels"] = torch.from_numpy(apply_label_policy(record["labels"], self.spec, training=False))
        return sample


def apply_label_policy(labels: Sequence[float | None], spec: DatasetSpec, *, training: bool) -> np.ndarray:
    """Apply the row's label policies: float32 (C,), NaN = unknown.

    In training, "soft" samples from NumPy's global generator at every call; in evaluation it is unknown.
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
    """Seed NumPy's global generator inside the block and restore its state afterwards."""
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
    """The transform from annotation pixels to the pixels of the loaded image."""
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
    """Transformed and clipped boxes; those that retain less than MIN_VISIBLE of their area are dropped."""
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
    """masks, mask_known and mask_valid; pixels from outside the original image are background."""
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
    """The transformed masks of one image: uint8 0/1 (N, H, W).

    Eight masks are packed into the bits of one byte image. Nearest-neighbour transforms never mix values, so this
    costs one transform for eight masks.
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
