"""Augmentation of 2-D grey images with their boxes and masks, on Detectron2's transforms.

Order: crop (full resolution), resize to the network's size (antialiased), flip, then rotation, scale and shift as one
affine warp of the small image, then brightness and contrast. Random numbers come from numpy's global generator, as
everywhere in Detectron2; the mapper seeds it for each sample.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import HFlipTransform, Transform, TransformList

from fx_d2.structures import DatasetSpec, FXError


class AffineTransform(Transform):
    """An affine map of the image onto a canvas of the same size; uncovered pixels become 0, in masks too."""

    def __init__(self, *, matrix: np.ndarray) -> None:
        """matrix: float (2, 3), from old to new continuous coordinates (pixel i covers [i, i + 1))."""
        super().__init__()
        to_continuous = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        square = np.vstack([matrix, [0, 0, 1]])
        self.matrix = matrix
        self.pixel_matrix = (np.linalg.inv(to_continuous) @ square @ to_continuous)[:2]

    def apply_image(self, img: np.ndarray, interp: int = cv2.INTER_LINEAR) -> np.ndarray:
        """Warp an array (H, W) of uint8 or float32."""
        size = (img.shape[1], img.shape[0])
        return cv2.warpAffine(np.ascontiguousarray(img), self.pixel_matrix, size, flags=interp)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Warp a mask or a packed bit plane (H, W) with the nearest neighbour."""
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map points (N, 2) of x, y."""
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]


class RandomAffine(T.Augmentation):
    """Uniform random rotation, scale and shift about the image's centre, in one interpolation."""

    def __init__(self, *, rotate: float, scale: float, shift: float) -> None:
        """rotate: degrees either way; scale: relative range about 1; shift: share of the side, either way."""
        super().__init__()
        self.rotate, self.scale, self.shift = rotate, scale, shift

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the map for an image (H, W)."""
        height, width = image.shape[:2]
        angle = np.deg2rad(np.random.uniform(-self.rotate, self.rotate))
        factor = np.random.uniform(1 - self.scale, 1 + self.scale)
        shift = np.random.uniform(-self.shift, self.shift, size=2) * (width, height)
        cos, sin = factor * np.cos(angle), factor * np.sin(angle)
        linear = np.array([[cos, sin], [-sin, cos]])
        centre = np.array([width / 2, height / 2])
        return AffineTransform(matrix=np.column_stack([linear, centre + shift - linear @ centre]))


class TaskAugmentation:
    """The augmentation of one task: one geometry for image, boxes and masks, and photometry for the image alone."""

    def __init__(self, *, geometric: list[T.Augmentation], photometric: list[T.Augmentation]) -> None:
        """Both lists are applied in order; `geometric` must end in images of the network's size."""
        self._geometric = T.AugmentationList(geometric)
        self._photometric = T.AugmentationList(photometric)

    def geometry(self, image: np.ndarray) -> tuple[np.ndarray, TransformList, bool]:
        """Draw a geometry for an image uint8 (H, W).

        Returns:
            the moved image, the transform (for boxes and masks), and whether left and right changed sides.
        """
        moved = T.AugInput(image)
        transform = self._geometric(moved)
        return moved.image, transform, _count_flips(transform) % 2 == 1

    def photometry(self, image: np.ndarray) -> np.ndarray:
        """A copy of an image uint8 (H, W) with newly drawn brightness and contrast."""
        lit = T.AugInput(image)
        self._photometric(lit)
        return np.array(lit.image)


def build_augmentation(cfg: CfgNode, task: str, spec: DatasetSpec) -> TaskAugmentation:
    """The augmentation of INPUT.{CLS,LOC,SEG}; FXError for a value out of range, naming the key.

    All parts are optional: a range of 0 (CROP: 1) leaves the part out. `spec` is not needed to move pixels; classes
    with a side are swapped by the mapper through `spec.flip_permutation`.
    """
    values = cfg.INPUT[task.upper()]
    _check_ranges(values, f"INPUT.{task.upper()} (dataset {spec.name})")
    geometric: list[T.Augmentation] = []
    if values.CROP < 1:
        geometric.append(T.RandomCrop("relative_range", (values.CROP, values.CROP)))
    geometric.append(T.Resize(tuple(cfg.INPUT.SIZE)))
    if values.FLIP > 0:
        geometric.append(T.RandomFlip(prob=values.FLIP))
    if values.ROTATE > 0 or values.SCALE > 0 or values.SHIFT > 0:
        geometric.append(RandomAffine(rotate=values.ROTATE, scale=values.SCALE, shift=values.SHIFT))
    photometric: list[T.Augmentation] = []
    if values.BRIGHTNESS > 0:
        photometric.append(T.RandomBrightness(1 - values.BRIGHTNESS, 1 + values.BRIGHTNESS))
    if values.CONTRAST > 0:
        photometric.append(T.RandomContrast(1 - values.CONTRAST, 1 + values.CONTRAST))
    return TaskAugmentation(geometric=geometric, photometric=photometric)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image uint8 (H, W) at `size` (height, width), with the same antialiased resize that training uses."""
    return np.array(T.ResizeTransform(*image.shape[:2], *size).apply_image(image))


def _check_ranges(values: dict[str, Any], where: str) -> None:
    limits = {"FLIP": (0, 1), "CROP": (0.01, 1), "ROTATE": (0, 180), "SCALE": (0, 0.99), "SHIFT": (0, 1)}
    for key, (low, high) in (limits | {"BRIGHTNESS": (0, 1), "CONTRAST": (0, 1)}).items():
        if not low <= values[key] <= high:
            raise FXError(f"{where}: {key} is {values[key]}, it must be in [{low}, {high}]")


def _count_flips(transform: Transform) -> int:
    """The number of left-right flips in a transform, nested lists included."""
    if isinstance(transform, TransformList):
        return sum(_count_flips(part) for part in transform.transforms)
    return int(isinstance(transform, HFlipTransform))
