"""Masks as compressed COCO run-length codes (RLE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from fx_d2.data.codecs import read_mask_file
from fx_d2.structures import FXError

Rle = dict[str, Any]
"""A compressed COCO run-length mask: {"size": [height, width], "counts": str}."""


def encode_mask(mask: np.ndarray) -> Rle:
    """Encode a mask (H, W) of any dtype, nonzero = foreground, as compressed COCO RLE; `counts` is a str for JSON."""
    if mask.ndim != 2:
        raise FXError(f"a mask must be an array (height, width), not of shape {mask.shape}")
    rle = mask_api.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_masks(
    rles: Sequence[Rle], where: str, rows: np.ndarray | None = None, columns: np.ndarray | None = None
) -> np.ndarray:
    """Decode the N >= 1 masks of one image at the given rows and columns.

    If few pixels are requested, looking them up in the run ends takes a tenth of the time of decoding the full image.

    Args:
        rles: masks of equal size.
        where: the image, for error messages.
        rows, columns: int (H,) and (W,), ascending, repeats allowed; default: all.

    Returns:
        uint8 0/1 (H, W, N).

    Raises:
        FXError: a broken run-length code; the message starts with `where`.
    """
    height, width = rles[0]["size"]
    rows = np.arange(height) if rows is None else rows
    # Each column once: the pixels to look up must be in ascending order.
    once, places = np.unique(np.arange(width) if columns is None else columns, return_inverse=True)
    pixels = (once[:, None] * height + rows).reshape(-1)
    planes = np.empty((len(rles), len(pixels)), dtype=np.uint8)
    for plane, rle in zip(planes, rles, strict=True):
        runs = _checked_runs(rle, height, width)
        if isinstance(runs, str):
            raise FXError(f"{where}: a mask {runs}; prepare the dataset again")
        reached = np.searchsorted(pixels, np.cumsum(runs))
        plane[:] = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, np.diff(reached, prepend=0))
    return planes.reshape(len(rles), len(once), len(rows))[:, places].transpose(2, 1, 0)


def image_masks(record: Mapping[str, Any]) -> list[Rle | None] | None:
    """The masks of a dataset dict as RLEs (None = unknown), loading those stored in files; None = not annotated.

    Raises:
        FXError: a mask file cannot be read or differs in size from its image; the message names it.
    """
    masks = record["masks"]
    if masks is None:
        return None
    return [_from_file(mask["file"], record) if mask and "file" in mask else mask for mask in masks]


def _from_file(path: str, record: Mapping[str, Any]) -> Rle:
    mask, size = read_mask_file(path), (record["height"], record["width"])
    if mask.shape != size:
        raise FXError(f"{path}: the mask is {mask.shape[1]} x {mask.shape[0]}, its image {size[1]} x {size[0]}")
    return encode_mask(mask)


def mask_problem(mask: object, height: int, width: int) -> str:
    """Why an object is neither an RLE of a mask (height, width) nor {"file": path}, or ""."""
    if isinstance(mask, dict) and "file" in mask:
        return "" if set(mask) == {"file"} and isinstance(mask["file"], str) else 'must have one key, "file", a string'
    return rle_problem(mask, height, width)


def rle_problem(rle: object, height: int, width: int) -> str:
    """Why an object is not a compressed RLE of a mask (height, width), or ""."""
    runs = _checked_runs(rle, height, width)
    return runs if isinstance(runs, str) else ""


def _checked_runs(rle: object, height: int, width: int) -> np.ndarray | str:
    """The run lengths int64 (N,) of a mask (height, width), or why the RLE is invalid.

    Verifies that the runs fill the image: pycocotools decodes a truncated code to uninitialised memory.
    """
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str):
        return "is not a compressed RLE {size, counts}"
    if rle.get("size") != [height, width]:
        return f"is of size {rle.get('size')}, its image of [height, width] {[height, width]}"
    runs = _runs(rle["counts"])
    if runs is None or (runs < 0).any() or runs.sum() != height * width:
        return "has a broken run-length code: its runs do not fill the image"
    return runs


def _runs(counts: str) -> np.ndarray | None:
    """The run lengths int64 (N,) of a compressed code, or None if it is invalid.

    COCO's text format: 5 bits per character, offset by 48; bit 6 marks continuation and the top bit of the last
    character is the sign. From the fourth number on, each is the difference from the one two positions before.
    """
    if not counts.isascii():
        return None
    chars = np.frombuffer(counts.encode(), dtype=np.uint8).astype(np.int64) - 48
    if not len(chars) or chars.min() < 0 or chars.max() > 63 or chars[-1] & 32:
        return None
    last = (chars & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = 5 * (np.arange(len(chars)) - np.repeat(starts, np.diff([*starts, len(chars)])))
    if place.max() > 50:
        return None
    numbers = np.add.reduceat((chars & 31) << place, starts)
    numbers -= np.where(chars[last] & 16, 32 << place[last], 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
