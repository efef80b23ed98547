"""Augmentation of 2-D grey images, boxes and masks, built on Detectron2's transforms.

Order: crop (full resolution), resize to the model's input size (antialiased), flip, then rotation, scale and shift as
one affine warp of the small image, then brightness and contrast as one lookup table of grey values. Images stay in
0..255 until the model normalises them, so no step sees another range (the reference changed the brightness of
normalised images and clipped to [0, 1], which left nearly blank images). Random numbers come from NumPy's global
generator, as everywhere in Detectron2; the mapper seeds it for each sample.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, Transform, TransformList

from fx_d2.data.cache import resize_image
from fx_d2.data.sides import has_side
from fx_d2.structures import DatasetSpec, FXError

MAX_LIGHT = 0.5
"""Upper limit of the brightness and contrast ranges; within it no image can become blank."""

CROP_ASPECT = (3 / 4, 4 / 3)
"""Range of the aspect ratio (width / height) of a random crop; torchvision's default."""


class ResizeTransform(Transform):
    """Resize: images are area-averaged or interpolated (`resize_image`), masks use the nearest pixel."""

    def __init__(self, *, old: tuple[int, int], new: tuple[int, int]) -> None:
        """old, new: (height, width)."""
        super().__init__()
        self.old, self.new = old, new

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Resize an image (H, W) of uint8 or float32."""
        return resize_image(img, self.new)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map points x, y (N, 2)."""
        return coords * (self.new[1] / self.old[1], self.new[0] / self.old[0])

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a mask or packed bit planes (H, W): each new pixel takes the old pixel under its centre."""
        rows, columns = (_middles(Fraction(0), Fraction(a, b), b) for a, b in zip(self.old, self.new, strict=True))
        return segmentation[rows[:, None], columns]


class Resize(T.Augmentation):
    """Resize to a fixed size; the aspect ratio is not preserved."""

    def __init__(self, *, size: tuple[int, int]) -> None:
        """size: (height, width)."""
        super().__init__()
        self.size = size

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize of an image (H, W)."""
        return ResizeTransform(old=image.shape[:2], new=self.size)


class RandomAreaCrop(T.Augmentation):
    """Random crop by area and aspect ratio: torchvision's RandomResizedCrop without the resize."""

    def __init__(self, *, area: float) -> None:
        """area: minimum fraction of the image area, in (0, 1]; the maximum is 1."""
        super().__init__()
        self.area = area

    def get_transform(self, image: np.ndarray) -> Transform:
        """Sample a window of an image (H, W); after ten windows that do not fit, the image is not cropped.

        In large images the sides of a window are multiples of eight, so that `resize_image` can halve them.
        """
        height, width = image.shape[:2]
        unit = 8 if min(height, width) >= 256 else 1
        for _ in range(10):
            area = np.random.uniform(self.area, 1) * height * width
            aspect = np.exp(np.random.uniform(*np.log(CROP_ASPECT)))
            w, h = (max(1, round(side / unit)) * unit for side in (np.sqrt(area * aspect), np.sqrt(area / aspect)))
            if w <= width and h <= height:
                x, y = np.random.randint(width - w + 1), np.random.randint(height - h + 1)
                return CropTransform(x, y, w, h, width, height)
        return NoOpTransform()


class LightTransform(Transform):
    """Brightness, then contrast about the mean; grey values are clipped to 0..255."""

    def __init__(self, *, brightness: float, contrast: float) -> None:
        """brightness, contrast: factors, 1 = no change."""
        super().__init__()
        self.brightness, self.contrast = brightness, contrast

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Adjust an image (H, W), uint8 or float32, both in 0..255."""
        scale = self.brightness * self.contrast
        offset = self.brightness * cv2.mean(img)[0] * (1 - self.contrast)
        if img.dtype != np.uint8:
            return np.clip(img * np.float32(scale) + np.float32(offset), 0, 255)
        table = np.rint(np.clip(np.arange(256) * scale + offset, 0, 255)).astype(np.uint8)
        return cv2.LUT(img, table)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Identity."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Identity."""
        return segmentation


class RandomLight(T.Augmentation):
    """Uniform random brightness and contrast."""

    def __init__(self, *, brightness: float, contrast: float) -> None:
        """brightness, contrast: half-widths of the ranges of the factors about 1, in [0, MAX_LIGHT]."""
        super().__init__()
        self.brightness, self.contrast = brightness, contrast

    def get_transform(self, image: np.ndarray) -> Transform:
        """Sample both factors."""
        return LightTransform(
            brightness=np.random.uniform(1 - self.brightness, 1 + self.brightness),
            contrast=np.random.uniform(1 - self.contrast, 1 + self.contrast),
        )


class AffineTransform(Transform):
    """An affine warp onto a canvas of the same size; uncovered pixels of images and masks become 0."""

    def __init__(self, *, matrix: np.ndarray) -> None:
        """matrix: float (2, 3), maps old to new continuous coordinates (pixel i covers [i, i + 1))."""
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
        """Warp a mask or packed bit planes (H, W) with nearest-neighbour sampling."""
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map points x, y (N, 2)."""
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]


class RandomAffine(T.Augmentation):
    """Uniform random rotation and scale about the image centre and uniform random shift, in one interpolation."""

    def __init__(self, *, rotate: float, scale: float, shift: float) -> None:
        """rotate: degrees, +/-; scale: half-width of the range about 1; shift: fraction of the side length, +/-."""
        super().__init__()
        self.rotate, self.scale, self.shift = rotate, scale, shift

    def get_transform(self, image: np.ndarray) -> Transform:
        """Sample the warp of an image (H, W)."""
        height, width = image.shape[:2]
        angle = np.deg2rad(np.random.uniform(-self.rotate, self.rotate))
        factor = np.random.uniform(1 - self.scale, 1 + self.scale)
        shift = np.random.uniform(-self.shift, self.shift, size=2) * (width, height)
        cos, sin = factor * np.cos(angle), factor * np.sin(angle)
        linear = np.array([[cos, sin], [-sin, cos]])
        centre = np.array([width / 2, height / 2])
        return AffineTransform(matrix=np.column_stack([linear, centre + shift - linear @ centre]))


class TaskAugmentation:
    """The augmentation of one task: geometric for image, boxes and masks, photometric for the image only."""

    def __init__(self, *, geometric: list[T.Augmentation], photometric: list[T.Augmentation]) -> None:
        """Both lists are applied in order; `geometric` must output images of the model's input size."""
        self._geometric = T.AugmentationList(geometric)
        self._photometric = T.AugmentationList(photometric)

    def geometry(self, image: np.ndarray) -> tuple[np.ndarray, TransformList, bool]:
        """Sample and apply the geometric augmentation of an image (H, W), uint8 or float32.

        Returns:
            the transformed image, the transform (for boxes and masks), and whether left and right were swapped.
        """
        moved = T.AugInput(image)
        transform = self._geometric(moved)
        return moved.image, transform, _count_flips(transform) % 2 == 1

    def photometry(self, image: np.ndarray) -> np.ndarray:
        """Sample and apply the photometric augmentation of an image (H, W) in 0..255."""
        lit = T.AugInput(image)
        self._photometric(lit)
        return lit.image


def build_augmentation(cfg: CfgNode, task: str, spec: DatasetSpec) -> TaskAugmentation:
    """Build the augmentation of INPUT.{CLS,LOC,SEG}.

    Every transform is optional: a range of 0 (CROP_AREA: 1) disables it. The mapper swaps left and right classes with
    `spec.flip_permutation`.

    Raises:
        FXError: a value out of range, or flips enabled for a left or right class without a partner; the message names
            the key.
    """
    values, where = cfg.INPUT[task.upper()], f"INPUT.{task.upper()} (dataset {spec.name})"
    _check_ranges(values, where)
    if values.FLIP > 0:
        _check_sides(spec, task, where)
    geometric: list[T.Augmentation] = []
    if values.CROP_AREA < 1:
        geometric.append(RandomAreaCrop(area=values.CROP_AREA))
    geometric.append(Resize(size=tuple(cfg.INPUT.SIZE)))
    if values.FLIP > 0:
        geometric.append(T.RandomFlip(prob=values.FLIP))
    if values.ROTATE > 0 or values.SCALE > 0 or values.SHIFT > 0:
        affine = RandomAffine(rotate=values.ROTATE, scale=values.SCALE, shift=values.SHIFT)
        geometric.append(T.RandomApply(affine, values.PROB))
    photometric: list[T.Augmentation] = []
    if values.BRIGHTNESS > 0 or values.CONTRAST > 0:
        light = RandomLight(brightness=values.BRIGHTNESS, contrast=values.CONTRAST)
        photometric.append(T.RandomApply(light, values.PROB))
    return TaskAugmentation(geometric=geometric, photometric=photometric)


def _check_ranges(values: dict[str, Any], where: str) -> None:
    limits = {
        "FLIP": (0, 1),
        "PROB": (0, 1),
        "CROP_AREA": (0.01, 1),
        "ROTATE": (0, 180),
        "SCALE": (0, 0.99),
        "SHIFT": (0, 1),
        "BRIGHTNESS": (0, MAX_LIGHT),
        "CONTRAST": (0, MAX_LIGHT),
    }
    for key, (low, high) in limits.items():
        if not low <= values[key] <= high:
            raise FXError(f"{where}: {key} is {values[key]}, it must be in [{low}, {high}]")


def split_grid(transform: TransformList, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, TransformList]:
    """Split a geometric transform into a selection of rows and columns and the remaining transforms.

    Each pixel is looked up once, under the centre of the new one, however many resizes precede (INPUT.READ_SIZE adds
    one). Without a crop this is the pixel that a single resize selects, as in evaluation.

    Args:
        transform: output of `TaskAugmentation.geometry`.
        size: (height, width) before the transform.

    Returns:
        rows int (H,) and columns int (W,) that the leading crops and resizes select from a mask, and the remaining
        transforms `rest`: a mask is transformed as `rest.apply_segmentation(mask[rows][:, columns])`.
    """
    origin, scale = [Fraction(0)] * 2, [Fraction(1)] * 2  # old = origin + new * scale, per axis
    rest: list[Transform] = []
    for done, part in enumerate(transform.transforms):
        if isinstance(part, CropTransform):
            origin = [a + b * start for a, b, start in zip(origin, scale, (part.y0, part.x0), strict=True)]
            size = (part.h, part.w)
        elif isinstance(part, ResizeTransform):
            scale = [b * Fraction(old, new) for b, old, new in zip(scale, size, part.new, strict=True)]
            size = part.new
        elif not isinstance(part, NoOpTransform):
            rest = transform.transforms[done:]
            break
    rows, columns = (_middles(*axis) for axis in zip(origin, scale, size, strict=True))
    return rows, columns, TransformList(rest)


def _middles(origin: Fraction, scale: Fraction, count: int) -> np.ndarray:
    """The old pixels int (count,) under the centres of the new ones, exactly: floor(origin + (i + 1 / 2) * scale)."""
    whole = 2 * origin.denominator * scale.denominator
    first, step = int(origin * whole), int(scale * whole)
    return (first + step // 2 + step * np.arange(count)) // whole


def _check_sides(spec: DatasetSpec, task: str, where: str) -> None:
    """FXError for a left or right class that a flip would not rename."""
    for i, (name, partner) in enumerate(zip(spec.classes(task), spec.flip_permutation(task), strict=True)):
        if partner == i and has_side(name):
            raise FXError(
                f"{where}: FLIP is on, but class {name!r} has a side and no partner in the row's flip_pairs: add "
                "the pair (dataset.yaml; prepare_folder.py: --flip-pairs), or set FLIP 0"
            )


def _count_flips(transform: Transform) -> int:
    """The number of horizontal flips in a transform, including nested lists."""
    if isinstance(transform, TransformList):
        return sum(_count_flips(part) for part in transform.transforms)
    return int(isinstance(transform, HFlipTransform))
