"""Mask formats of the public releases, to and from arrays uint8 0/1 (height, width).

Two run-length encodings look alike but differ. "Relative" (SIIM-ACR, CANDID-PTX) is column-major and gives the gap
since the end of the previous run. "Absolute" (CheXmask) is row-major and gives the 1-based start of each run. Also
polygons (ChestX-Det), contours of points (VinDr-RibCXR) and image files (Montgomery, SCR).
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
"""How the releases encode an empty mask, after stripping whitespace."""

Point = Sequence[float]
"""x, y in pixels; integer coordinates are pixel centres."""


def decode_relative_rle(text: str, height: int, width: int) -> np.ndarray:
    """Decode "gap length gap length ..." of SIIM-ACR and CANDID-PTX to a mask uint8 0/1 (height, width).

    Pixels are in column-major order; a gap is the number of background pixels since the end of the previous run.
    "-1" and "" are empty masks.

    Raises:
        FXError: not pairs of integers >= 0, or runs beyond the image.
    """
    runs = _pairs(text).reshape(-1)
    size = height * width
    total = int(runs.sum())
    if total > size:
        raise FXError(f"run-length code ends at pixel {total} of an image of {height} x {width} = {size} pixels")
    return _fill(np.append(runs, size - total)).reshape(width, height).T.copy()


def encode_relative_rle(mask: np.ndarray) -> str:
    """Encode a mask (H, W), nonzero = foreground, for `decode_relative_rle`; "-1" for an empty mask."""
    starts, stops = _runs(mask.T)
    if not len(starts):
        return "-1"
    gaps = starts - np.concatenate([[0], stops[:-1]])
    return _join(gaps, stops - starts)


def decode_absolute_rle(text: str, height: int, width: int) -> np.ndarray:
    """Decode "start length start length ..." of CheXmask to a mask uint8 0/1 (height, width).

    Pixels are in row-major order, counted from 1. "-1" and "" are empty masks.

    Raises:
        FXError: not pairs of integers >= 0, a start of 0, unsorted or overlapping runs (as in a relative code), or
            runs beyond the image.
    """
    pairs = _pairs(text)
    size = height * width
    starts = pairs[:, 0] - 1
    stops = starts + pairs[:, 1]
    if len(starts) and starts.min() < 0:
        raise FXError("run-length code has a start of 0; pixels are counted from 1")
    if (starts[1:] < stops[:-1]).any():
        raise FXError("run-length code has unsorted or overlapping runs; is it a relative code?")
    if len(stops) and stops[-1] > size:
        raise FXError(f"run-length code ends at pixel {stops[-1]} of an image of {height} x {width} = {size} pixels")
    edges = np.concatenate([[0], np.column_stack([starts, stops]).reshape(-1), [size]])
    return _fill(np.diff(edges)).reshape(height, width)


def encode_absolute_rle(mask: np.ndarray) -> str:
    """Encode a mask (H, W), nonzero = foreground, for `decode_absolute_rle`; "" for an empty mask."""
    starts, stops = _runs(mask)
    return _join(starts + 1, stops - starts)


def fill_polygons(polygons: Sequence[Sequence[Point]], height: int, width: int) -> np.ndarray:
    """Rasterize the union of polygons, including their outlines, to a mask uint8 0/1 (height, width).

    Vertices are rounded to whole pixels and may lie outside the image. One or two vertices give a dot or a line; no
    polygons give an empty mask.

    Raises:
        FXError: a polygon without vertices, or a vertex that is not two finite numbers.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    for number, polygon in enumerate(polygons):
        try:
            corners = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError):
            corners = np.empty(0)
        if corners.ndim != 2 or corners.shape[1] != 2 or not np.isfinite(corners).all():
            raise FXError(f"polygon {number} must be a list of points [x, y] of finite numbers")
        # One at a time: cv2 leaves holes where polygons of the same call overlap.
        cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1)
    return mask


def decode_points(points: Sequence[Mapping[str, float]] | str | None, height: int, width: int) -> np.ndarray:
    """Rasterize a contour [{"x": .., "y": ..}, ..] to a mask uint8 0/1 (height, width).

    "None", None and [] are empty masks.

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
    """Load the mask uint8 0/1 (H, W) in an image file (PNG of any bit depth, palette, GIF).

    Background is 0, foreground one other value. Further values are accepted as soft edges if the maximum is white
    (255 or 65535); values above half the maximum are foreground.

    Raises:
        FXError: the file cannot be read, is a JPEG (lossy), or holds several values that are not soft edges, as a
            label map does; the message names the file.
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
        raise FXError(f"{path}: not a complete PNG or GIF" if data else f"{path}: empty file") from None
    except Image.DecompressionBombError as error:
        raise FXError(f"{path}: {error}") from None
    problem = png_problem(data) if kind == "PNG" else ""
    if kind == "JPEG" or problem:
        raise FXError(f"{path}: {problem or 'a mask must be a PNG or GIF: JPEG is lossy'}")
    if pixels.ndim == 3:
        pixels = pixels.max(axis=2)
    values = np.unique(pixels)
    top = int(values[-1])
    if np.count_nonzero(values) > 1 and top not in (255, 65535):
        raise FXError(f"{path}: a mask has 0 and one other value, this file has {len(values)} values up to {top}")
    return (pixels > top / 2).astype(np.uint8)


def merge_masks(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The union uint8 0/1 (H, W) of one or more masks of equal shape, nonzero = foreground; FXError otherwise."""
    shapes = {mask.shape for mask in masks}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise FXError(f"masks to merge must be one or more arrays of one shape (H, W), not {sorted(shapes)}")
    merged = masks[0] != 0
    for mask in masks[1:]:
        merged |= mask != 0
    return merged.astype(np.uint8)


def _pairs(text: str) -> np.ndarray:
    """The pairs of a run-length code as int64 (runs, 2)."""
    words = [] if text.strip() in EMPTY else text.split()
    try:
        numbers = np.array(words, dtype=np.int64)
    except (ValueError, OverflowError):
        raise FXError(f"run-length code holds something that is not an integer: {text[:40]!r}") from None
    if len(numbers) % 2:
        raise FXError(f"run-length code has {len(numbers)} numbers; they must come in pairs")
    beyond = numbers[(numbers < 0) | (numbers > np.iinfo(np.int32).max)]
    if len(beyond):
        raise FXError(f"run-length code has the number {beyond[0]}, beyond any image")
    return numbers.reshape(-1, 2)


def _fill(runs: np.ndarray) -> np.ndarray:
    """Flat pixels uint8 0/1 from alternating run lengths of background and foreground, background first."""
    return np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs)


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end (exclusive) of each run of nonzero pixels in C order, int64."""
    inside = np.concatenate([[False], mask.reshape(-1) != 0, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return edges[0::2], edges[1::2]


def _join(first: np.ndarray, second: np.ndarray) -> str:
    return " ".join(map(str, np.column_stack([first, second]).reshape(-1).tolist()))
