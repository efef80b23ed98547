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
    """The compressed COCO RLE of a mask (H, W), any dtype, nonzero = inside; `counts` is a str fit for json."""
    if mask.ndim != 2:
        raise FXError(f"a mask must be an array (height, width), not of shape {mask.shape}")
    rle = mask_api.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_masks(
    rles: Sequence[Rle], where: str, rows: np.ndarray | None = None, columns: np.ndarray | None = None
) -> np.ndarray:
    """The masks of one image, N >= 1, at the pixels where rows and columns meet.

    A code is a list of run ends in a flat image; looking the wanted pixels up in it costs a tenth of drawing the image
    when they are few.

    Args:
        rles: codes of one size.
        where: the image, named in errors.
        rows, columns: int (H,) and (W,), in rising order, repeats allowed; default: all.

    Returns:
        uint8 0/1 (H, W, N).

    Raises:
        FXError: naming `where`, for a code that is broken.
    """
    height, width = rles[0]["size"]
    rows = np.arange(height) if rows is None else rows
    # Each column once: the pixels looked up must be in rising order.
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
    """The masks of a dataset dict as RLEs (None: unknown), those kept in files read now; None: not annotated.

    Raises:
        FXError: a mask file that cannot be read or has not its image's size, naming it.
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
        return "" if set(mask) == {"file"} and isinstance(mask["file"], str) else "must name its file as a string alone"
    return rle_problem(mask, height, width)


def rle_problem(rle: object, height: int, width: int) -> str:
    """Why an object is not a compressed RLE of a mask (height, width), or ""."""
    runs = _checked_runs(rle, height, width)
    return runs if isinstance(runs, str) else ""


def _checked_runs(rle: object, height: int, width: int) -> np.ndarray | str:
    """The run lengths int64 (N,) of a mask (height, width), or why there are none.

    The runs are added up: pycocotools decodes a code that is too short into whatever the memory held.
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
    """Run lengths int64 (N,) of a compressed code, or None where it is no such code.

    COCO's text code: 5 bits a character from chr(48) on, bit 6 = more follow, the last one's top bit the sign; from the
    fourth number on, a number is the difference to the one two places before.
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
