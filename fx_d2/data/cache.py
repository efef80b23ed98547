"""Images at a reduced size: resized when loaded, or loaded from a cache of resized copies with the same pixels.

Both paths go through `_reduced`, so a run with the cache is bit-identical to a run without it. Boxes and masks stay in
original pixels: an image entry keeps `width` and `height`, and `stored_size` is the size of the copy.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from fx_d2.data.image_io import Intensity, read_image
from fx_d2.files import write_atomic
from fx_d2.structures import FXError

_STAMP = "fx_d2 source"
"""Keyword of the PNG text chunk that identifies the source of a cached copy."""


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W), uint8 or float32, to `size` (height, width): area averaging down, bilinear up.

    Training, evaluation and the cache all use this function.
    """
    # Halving is exact and thirty times as fast as averaging over fractional pixels, which remains for factors below
    # two.
    while all(old % 2 == 0 and old >= 2 * new for old, new in zip(image.shape, size, strict=True)):
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    # cv2 averages only if both sides shrink.
    for height, width, how in (
        (min(image.shape[0], size[0]), min(image.shape[1], size[1]), cv2.INTER_AREA),
        (*size, cv2.INTER_LINEAR),
    ):
        if (height, width) != image.shape:
            image = cv2.resize(image, (width, height), interpolation=how)
    return image


def read_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) after reducing the shorter side to `shorter`, aspect ratio kept; 0 or a smaller image: as is."""
    if not 0 < shorter < min(height, width):
        return height, width
    scale = shorter / min(height, width)
    return max(shorter, round(height * scale)), max(shorter, round(width * scale))


def read_record(record: Mapping[str, Any], shorter: int = 0, dtype: str = "uint8") -> np.ndarray:
    """Load the image of a dataset dict, reduced to a shorter side (0: as stored).

    Args:
        record: a Detectron2 dict of `annotations.load_split`.
        shorter: INPUT.READ_SIZE.
        dtype: INPUT.DTYPE, "uint8" or "float32"; both in 0..255 (float32: not rounded).

    Returns:
        uint8 or float32 (H, W).

    Raises:
        FXError: the file cannot be read, its size differs from the annotation, or it is a cached copy smaller than
            `shorter` or with fewer bits than `dtype`; the message names the file.
    """
    path, stored = record["file_name"], record["stored_size"]
    height, width = record["height"], record["width"]
    wanted = read_size(height, width, shorter)
    if stored is None:
        return _reduced(path, record["intensity"], (height, width), wanted, dtype)
    if dtype != "uint8":
        raise FXError(f"{path}: the cache has 8 bits: INPUT.DTYPE {dtype!r} needs the original images")
    if shorter and stored[0] < wanted[0]:
        raise FXError(f"{path}: cached at {stored[1]} x {stored[0]}, smaller than INPUT.READ_SIZE {shorter}")
    return _reduced(path, None, stored, wanted if shorter else stored, dtype)


def read_full_size(record: Mapping[str, Any]) -> np.ndarray:
    """The image uint8 (H, W) of a dataset dict at the size of its boxes and masks; cached copies are enlarged."""
    return resize_image(read_record(record), (record["height"], record["width"]))


def cache_images(
    images: Sequence[Mapping[str, Any]],
    *,
    image_root: str | Path,
    cache_root: str | Path,
    shorter: int,
    threads: int = 1,
) -> list[dict[str, Any]]:
    """Write reduced copies of images as 8-bit grey PNGs and return image entries that reference them.

    An existing copy of the same file at the same size is kept, so an interrupted preparation continues where it
    stopped.

    Args:
        images: in the format of `annotations.write_split`.
        image_root: folder that their file_name is relative to.
        cache_root: folder for the copies, preferably one per size; the new `image_root`.
        shorter: shorter side of the copies in pixels; smaller images keep their size.
        threads: number of threads.

    Returns:
        the images with the file_name of the copy (".png" appended if needed), `stored_size`, mask files relative to
        `cache_root`, and without `intensity`, which is already applied to the copy.

    Raises:
        FXError: an unreadable image, an image whose size differs from its entry, or a file_name outside the folder.
    """
    if shorter < 1:
        raise FXError(f"the cache size is {shorter}; it must be the shorter side in pixels, 1 or more")
    work = partial(_cache_one, Path(image_root), Path(cache_root), shorter)
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        return list(pool.map(work, images))


def _reduced(
    path: str | Path, intensity: Intensity | None, size: tuple[int, int], wanted: tuple[int, int], dtype: str
) -> np.ndarray:
    """Load an image, check its `size` and resize it to `wanted`; 0..255."""
    image = read_image(path, intensity=intensity, dtype=dtype)
    if image.shape != tuple(size):
        raise FXError(
            f"{path}: the image is {image.shape[1]} x {image.shape[0]} pixels, but its annotation says "
            f"{size[1]} x {size[0]}: prepare the dataset again"
        )
    if dtype == "float32":
        image = image * np.float32(255)
    return resize_image(image, wanted)


def _cache_one(image_root: Path, cache_root: Path, shorter: int, image: Mapping[str, Any]) -> dict[str, Any]:
    """Write the copy of one image unless it exists; returns the new image entry."""
    name = PurePosixPath(str(image["file_name"]))
    if name.is_absolute() or ".." in name.parts:
        raise FXError(f"image {str(name)!r} is outside its folder {image_root} and cannot be cached")
    size = (int(image["height"]), int(image["width"]))
    wanted = read_size(*size, shorter)
    intensity = image.get("intensity")
    source = image_root / name
    target = cache_root / (name if name.suffix.lower() == ".png" else f"{name}.png")
    try:
        status = source.stat()
    except OSError as error:
        raise FXError(f"{source}: image file cannot be read ({error.strerror})") from None
    stamp = f"{status.st_size} {status.st_mtime_ns} {list(wanted)} {list(intensity) if intensity else None}"
    if _stamp(target) != stamp:
        _write_png(target, _reduced(source, intensity, size, wanted, "uint8"), stamp)
    cached = {key: value for key, value in image.items() if key != "intensity"}
    cached |= {"file_name": target.relative_to(cache_root).as_posix(), "stored_size": list(wanted)}
    if image.get("masks") is not None:
        cached["masks"] = [_mask_from(cache_root, image_root, mask) for mask in image["masks"]]
    return cached


def _mask_from(cache_root: Path, image_root: Path, mask: Any) -> Any:
    """The mask with its file, if any, relative to the folder of the copies; masks are not reduced."""
    if not isinstance(mask, Mapping) or "file" not in mask:
        return mask
    return {"file": os.path.relpath(image_root / mask["file"], cache_root)}


def _stamp(path: Path) -> str:
    """The source stamp of a cached copy, or ""."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(_STAMP, "")
    except (OSError, SyntaxError):
        return ""


def _write_png(path: Path, image: np.ndarray, stamp: str) -> None:
    """Write a copy with its source stamp."""
    text = PngImagePlugin.PngInfo()
    text.add_text(_STAMP, stamp)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG", pnginfo=text)
    write_atomic(path, stream.getvalue())
