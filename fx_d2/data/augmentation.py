"""Augmentation of 2-D grey images with their boxes and masks, on Detectron2's transforms.

Order: crop (full resolution), resize to the network's size (antialiased), flip, then rotation, scale and shift as one
affine warp of the small image, then brightness and contrast as one table of grey values. Images stay bytes until the
model normalises them, so no step sees values of another range (the reference changed brightness of normalised images
under a clip to [0, 1], which left nearly blank pictures). Random numbers come from numpy's global generator, as
everywhere in Detectron2; the mapper seeds it for each sample.
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
"""Largest range of brightness and contrast: below it no picture can become blank."""

CROP_ASPECT = (3 / 4, 4 / 3)
"""Width by height of a random crop, torchvision's default."""


class ResizeTransform(Transform):
    """A change of size: images are averaged or interpolated (`resize_image`), masks take the nearest pixel."""

    def __init__(self, *, old: tuple[int, int], new: tuple[int, int]) -> None:
        """old, new: (height, width)."""
        super().__init__()
        self.old, self.new = old, new

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Resize an image (H, W) of uint8 or float32."""
        return resize_image(img, self.new)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map points (N, 2) of x, y."""
        return coords * (self.new[1] / self.old[1], self.new[0] / self.old[0])

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a mask or a packed bit plane (H, W): the old pixels that lie under the middles of the new ones."""
        rows, columns = (_middles(Fraction(0), Fraction(a, b), b) for a, b in zip(self.old, self.new, strict=True))
        return segmentation[rows[:, None], columns]


class Resize(T.Augmentation):
    """To a fixed size, aspect ratio not kept."""

    def __init__(self, *, size: tuple[int, int]) -> None:
        """size: (height, width)."""
        super().__init__()
        self.size = size

    def get_transform(self, image: np.ndarray) -> Transform:
        """The change of size of an image (H, W)."""
        return ResizeTransform(old=image.shape[:2], new=self.size)


class RandomAreaCrop(T.Augmentation):
    """A random crop by area and aspect ratio: the crop of torchvision's RandomResizedCrop, without the resize."""

    def __init__(self, *, area: float) -> None:
        """area: smallest share of the image's area, in (0, 1]; the largest is 1."""
        super().__init__()
        self.area = area

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the window; a drawn window that does not fit is drawn again, ten times, then nothing is cropped.

        The sides of windows in large images are multiples of eight, which `resize_image` halves quickly.
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
    """Brightness, then contrast about the mean; grey values beyond 0..255 are cut off."""

    def __init__(self, *, brightness: float, contrast: float) -> None:
        """brightness, contrast: factors, 1 = no change."""
        super().__init__()
        self.brightness, self.contrast = brightness, contrast

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Change the light of an image (H, W) of uint8 or float32, both in 0..255."""
        scale = self.brightness * self.contrast
        offset = self.brightness * cv2.mean(img)[0] * (1 - self.contrast)
        if img.dtype != np.uint8:
            return np.clip(img * np.float32(scale) + np.float32(offset), 0, 255)
        table = np.rint(np.clip(np.arange(256) * scale + offset, 0, 255)).astype(np.uint8)
        return cv2.LUT(img, table)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Points stay where they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Masks know no light."""
        return segmentation


class RandomLight(T.Augmentation):
    """Uniform random brightness and contrast."""

    def __init__(self, *, brightness: float, contrast: float) -> None:
        """brightness, contrast: relative ranges about 1, in [0, MAX_LIGHT]."""
        super().__init__()
        self.brightness, self.contrast = brightness, contrast

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw both factors."""
        return LightTransform(
            brightness=np.random.uniform(1 - self.brightness, 1 + self.brightness),
            contrast=np.random.uniform(1 - self.contrast, 1 + self.contrast),
        )


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
        """Draw a geometry for an image uint8 or float32 (H, W).

        Returns:
            the moved image, the transform (for boxes and masks), and whether left and right changed sides.
        """
        moved = T.AugInput(image)
        transform = self._geometric(moved)
        return moved.image, transform, _count_flips(transform) % 2 == 1

    def photometry(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W) of 0..255 with newly drawn brightness and contrast."""
        lit = T.AugInput(image)
        self._photometric(lit)
        return lit.image


def build_augmentation(cfg: CfgNode, task: str, spec: DatasetSpec) -> TaskAugmentation:
    """The augmentation of INPUT.{CLS,LOC,SEG}.

    All parts are optional: a range of 0 (CROP_AREA: 1) leaves the part out. Classes with a side are swapped by the
    mapper through `spec.flip_permutation`.

    Raises:
        FXError: a value out of range, or flips of classes with a side and without a partner, naming the key.
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
    }
    for key, (low, high) in (limits | {"BRIGHTNESS": (0, MAX_LIGHT), "CONTRAST": (0, MAX_LIGHT)}).items():
        if not low <= values[key] <= high:
            raise FXError(f"{where}: {key} is {values[key]}, it must be in [{low}, {high}]")


def split_grid(transform: TransformList, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, TransformList]:
    """The part of a geometry that picks rows and columns, and the rest.

    A pixel is looked up once, under the middle of the new one, however many changes of size led there (INPUT.READ_SIZE
    makes two): without a crop it is the pixel that one change of size picks, as in evaluation.

    Args:
        transform: of `TaskAugmentation.geometry`.
        size: (height, width) before it.

    Returns:
        rows int (H,) and columns int (W,) of the pixels that the leading crops and changes of size pick for a mask, and
        the transforms after them: a mask moves as `rest.apply_segmentation(mask[rows][:, columns])`.
    """
    origin, scale = [Fraction(0)] * 2, [Fraction(1)] * 2  # old = origin + new * scale, by axis
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
    """The old pixels int (count,) under the middles of new ones, exactly: floor(origin + (i + 1 / 2) * scale)."""
    whole = 2 * origin.denominator * scale.denominator
    first, step = int(origin * whole), int(scale * whole)
    return (first + step // 2 + step * np.arange(count)) // whole


def _check_sides(spec: DatasetSpec, task: str, where: str) -> None:
    """FXError for a class that would keep its name when its side changes."""
    for i, (name, partner) in enumerate(zip(spec.classes(task), spec.flip_permutation(task), strict=True)):
        if partner == i and has_side(name):
            raise FXError(
                f"{where}: flips pictures, but class {name!r} has a side and no partner in the row's flip_pairs: add "
                "the pair (dataset.yaml; prepare_folder.py: --flip-pairs), or set FLIP 0"
            )


def _count_flips(transform: Transform) -> int:
    """The number of left-right flips in a transform, nested lists included."""
    if isinstance(transform, TransformList):
        return sum(_count_flips(part) for part in transform.transforms)
    return int(isinstance(transform, HFlipTransform))
