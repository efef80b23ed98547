"""Masks as the public releases write them, to and from arrays uint8 0/1 (height, width).

Two run-length codes that look alike and are not: "relative" (SIIM-ACR, CANDID-PTX) counts columns first and gives each
run's gap from the end of the run before; "absolute" (CheXmask) counts rows first and gives each run's start from 1.
Beside them polygons (ChestX-Det), contours of points (VinDr-RibCXR) and image files (Montgomery, SCR).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from fx_d2.data.image_io import png_problem
from fx_d2.structures import FXError

EMPTY = ("", "-1")
"""How the releases write a mask without pixels, blanks around it aside."""

Point = Sequence[float]
"""x, y in pixels; a whole number is the middle of a pixel."""


def decode_relative_rle(text: str, height: int, width: int) -> np.ndarray:
    """The mask uint8 0/1 (height, width) of a code "gap length gap length ..." of SIIM-ACR and CANDID-PTX.

    Pixels are counted from 0 down the columns, the columns from left to right; a gap is the number of background
    pixels since the end of the run before. "-1" or nothing is an empty mask.

    Raises:
        FXError: not pairs of whole numbers >= 0, or runs beyond the image.
    """
    runs = _pairs(text).reshape(-1)
    size = height * width
    total = int(runs.sum())
    if total > size:
        raise FXError(f"run-length code ends at pixel {total} of an image of {height} x {width} = {size} pixels")
    return _fill(np.append(runs, size - total)).reshape(width, height).T.copy()


def encode_relative_rle(mask: np.ndarray) -> str:
    """The code that `decode_relative_rle` reads of a mask (H, W), nonzero = inside; "-1" for an empty one."""
    starts, stops = _runs(mask.T)
    if not len(starts):
        return "-1"
    gaps = starts - np.concatenate([[0], stops[:-1]])
    return _join(gaps, stops - starts)


def decode_absolute_rle(text: str, height: int, width: int) -> np.ndarray:
    """The mask uint8 0/1 (height, width) of a code "start length start length ..." of CheXmask.

    Pixels are counted from 1 along the rows, the rows from top to bottom. "-1" or nothing is an empty mask.

    Raises:
        FXError: not pairs of whole numbers >= 0, a start of 0, runs out of order or upon each other (which a code of
            the relative kind gives), or runs beyond the image.
    """
    pairs = _pairs(text)
    size = height * width
    starts = pairs[:, 0] - 1
    stops = starts + pairs[:, 1]
    if len(starts) and starts.min() < 0:
        raise FXError("run-length code has a start of 0; its pixels are counted from 1")
    if (starts[1:] < stops[:-1]).any():
        raise FXError("run-length code has runs out of order or upon each other; is it of the relative kind?")
    if len(stops) and stops[-1] > size:
        raise FXError(f"run-length code ends at pixel {stops[-1]} of an image of {height} x {width} = {size} pixels")
    edges = np.concatenate([[0], np.column_stack([starts, stops]).reshape(-1), [size]])
    return _fill(np.diff(edges)).reshape(height, width)


def encode_absolute_rle(mask: np.ndarray) -> str:
    """The code that `decode_absolute_rle` reads of a mask (H, W), nonzero = inside; "" for an empty one."""
    starts, stops = _runs(mask)
    return _join(starts + 1, stops - starts)


def fill_polygons(polygons: Sequence[Sequence[Point]], height: int, width: int) -> np.ndarray:
    """The union uint8 0/1 (height, width) of filled polygons, their outlines included; no polygon: an empty mask.

    Corners are rounded to whole pixels and may lie outside the image. A polygon of one or two corners is a dot or line.

    Raises:
        FXError: a polygon without corners, or a corner that is not two finite numbers.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    for number, polygon in enumerate(polygons):
        try:
            corners = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError):
            corners = np.empty(0)
        if corners.ndim != 2 or corners.shape[1] != 2 or not np.isfinite(corners).all():
            raise FXError(f"polygon {number} must be a list of corners [x, y] of finite numbers")
        # One at a time: cv2 makes holes where polygons of one call overlap.
        cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1)
    return mask


def decode_points(points: Sequence[Mapping[str, float]] | str | None, height: int, width: int) -> np.ndarray:
    """The mask uint8 0/1 (height, width) inside a contour [{"x": .., "y": ..}, ..]; "None", None or []: an empty one.

    Raises:
        FXError: anything else.
    """
    if not points or points == "None":
        return np.zeros((height, width), dtype=np.uint8)
    try:
        if isinstance(points, str):
            raise TypeError
        contour = [(point["x"], point["y"]) for point in points]
    except (TypeError, KeyError):
        raise FXError('a contour must be "None" or a list of points {"x": .., "y": ..}') from None
    return fill_polygons([contour], height, width)


def read_mask_file(path: str | Path) -> np.ndarray:
    """The mask uint8 0/1 (H, W) in an image file (PNG of any depth, palette, GIF).

    Background is 0, and the inside one other value. A file with further values is accepted where they are soft edges
    between 0 and white (255 or 65535); above the middle counts as inside.

    Raises:
        FXError: naming the file, when it cannot be read, is a JPEG (whose values are not exact), or holds several
            values that are no soft edge, as a map of labels does.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FXError(f"{path}: mask file cannot be read ({error.strerror})") from None
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
            pixels = np.asarray(image if image.mode in ("1", "L", "I;16", "I") else image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise FXError(f"{path}: not a whole PNG or GIF" if data else f"{path}: empty file") from None
    problem = png_problem(data) if kind == "PNG" else ""
    if kind == "JPEG" or problem:
        raise FXError(f"{path}: {problem or 'a mask must be a PNG or GIF: a JPEG does not keep its values'}")
    if pixels.ndim == 3:
        pixels = pixels.max(axis=2)
    values = np.unique(pixels)
    top = int(values[-1])
    if np.count_nonzero(values) > 1 and top not in (255, 65535):
        raise FXError(f"{path}: a mask has 0 and one other value, this file has {len(values)} values up to {top}")
    return (pixels > top / 2).astype(np.uint8)


def merge_masks(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The union uint8 0/1 (H, W) of one or more masks of equal shape, nonzero = inside; FXError otherwise."""
    shapes = {mask.shape for mask in masks}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise FXError(f"masks to merge must be one or more arrays of one shape (H, W), not {sorted(shapes)}")
    merged = masks[0] != 0
    for mask in masks[1:]:
        merged |= mask != 0
    return merged.astype(np.uint8)


def _pairs(text: str) -> np.ndarray:
    """The numbers of a code as int64 (runs, 2)."""
    words = [] if text.strip() in EMPTY else text.split()
    try:
        numbers = np.array(words, dtype=np.int64)
    except (ValueError, OverflowError):
        raise FXError(f"run-length code holds something that is not a whole number: {text[:40]!r}") from None
    if len(numbers) % 2:
        raise FXError(f"run-length code has {len(numbers)} numbers; they must come in pairs")
    if len(numbers) and (numbers.min() < 0 or numbers.max() > np.iinfo(np.int32).max):
        raise FXError(f"run-length code has the number {numbers[(numbers < 0).argmax()]}, beyond any image")
    return numbers.reshape(-1, 2)


def _fill(runs: np.ndarray) -> np.ndarray:
    """Pixels uint8 in a row from run lengths of background, inside, background, ..."""
    return np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs)


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and pixel after the last of each run of nonzero pixels in an array's C order, int64."""
    inside = np.concatenate([[False], mask.reshape(-1) != 0, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return edges[0::2], edges[1::2]


def _join(first: np.ndarray, second: np.ndarray) -> str:
    return " ".join(map(str, np.column_stack([first, second]).reshape(-1).tolist()))
