"""Images at a reduced size: resized as they are read, or read from a cache of resized copies with the same pixels.

Both ways go through `_reduced`, so a run with the cache equals a run without it, bit by bit. Boxes and masks keep
speaking of the original pixels: an image row keeps `width` and `height`, and `stored_size` says what the copy has.
"""

from __future__ import annotations

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
from fx_d2.structures import FXError

_STAMP = "fx_d2 source"
"""Name of the PNG text that says what a cached copy was made of."""


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image uint8 or float32 (H, W) at `size` (height, width): averaged where it shrinks, linear where it grows.

    Training, evaluation and the cache resize with this function and no other.
    """
    # Halving is exact and thirty times as fast as averaging over fractions of pixels, which is left with a factor
    # below two.
    while all(old % 2 == 0 and old >= 2 * new for old, new in zip(image.shape, size, strict=True)):
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    # cv2 averages only when both sides shrink.
    for height, width, how in (
        (min(image.shape[0], size[0]), min(image.shape[1], size[1]), cv2.INTER_AREA),
        (*size, cv2.INTER_LINEAR),
    ):
        if (height, width) != image.shape:
            image = cv2.resize(image, (width, height), interpolation=how)
    return image


def read_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) of an image reduced to a shorter side, aspect kept; 0 and smaller images: as they are."""
    if not 0 < shorter < min(height, width):
        return height, width
    scale = shorter / min(height, width)
    return max(shorter, round(height * scale)), max(shorter, round(width * scale))


def read_record(record: Mapping[str, Any], shorter: int = 0, dtype: str = "uint8") -> np.ndarray:
    """The image of a dataset dict, reduced to a shorter side (0: as it is stored).

    Args:
        record: a Detectron2 dict of `annotations.load_split`.
        shorter: INPUT.READ_SIZE.
        dtype: INPUT.DTYPE, "uint8" or "float32"; both come in 0..255 (float32: not rounded).

    Raises:
        FXError: naming the file, when it cannot be read, has not the annotated size, or is a cached copy that is
            smaller than `shorter` or has not the depth of `dtype`.
    """
    path, stored = record["file_name"], record["stored_size"]
    height, width = record["height"], record["width"]
    wanted = read_size(height, width, shorter)
    if stored is None:
        return _reduced(path, record["intensity"], (height, width), wanted, dtype)
    if dtype != "uint8":
        raise FXError(f"{path}: the cache holds 8 bits: INPUT.DTYPE {dtype!r} needs the original images")
    if shorter and stored[0] < wanted[0]:
        raise FXError(f"{path}: cached at {stored[1]} x {stored[0]}, smaller than INPUT.READ_SIZE {shorter}")
    return _reduced(path, None, stored, wanted if shorter else stored, dtype)


def read_full_size(record: Mapping[str, Any]) -> np.ndarray:
    """The image uint8 (H, W) of a dataset dict in the pixels its boxes and masks speak of: copies are enlarged."""
    return resize_image(read_record(record), (record["height"], record["width"]))


def cache_images(
    images: Sequence[Mapping[str, Any]],
    *,
    image_root: str | Path,
    cache_root: str | Path,
    shorter: int,
    threads: int = 1,
) -> list[dict[str, Any]]:
    """Write copies of images at a shorter side as 8-bit grey PNGs, and point the images at them.

    A copy that is there already and was made of the same file in the same way is kept, so that an interrupted
    preparation goes on where it stopped.

    Args:
        images: in `annotations.write_split`'s form.
        image_root: folder that their file_name is relative to.
        cache_root: folder of the copies, best one for each size; the new `image_root`.
        shorter: pixels of the copies' shorter side; smaller images keep their size.
        threads: images at a time.

    Returns:
        the images with the file_name of the copy (".png" is appended where it is not there), `stored_size`, mask files
        named from `cache_root`, and without `intensity`, which the copy has applied.

    Raises:
        FXError: an unreadable image, one of another size than stated, or a file_name that leaves the folder.
    """
    if shorter < 1:
        raise FXError(f"the cache's size is {shorter}; it must be the pixels of the shorter side, 1 or more")
    work = partial(_cache_one, Path(image_root), Path(cache_root), shorter)
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        return list(pool.map(work, images))


def _reduced(
    path: str | Path, intensity: Intensity | None, size: tuple[int, int], wanted: tuple[int, int], dtype: str
) -> np.ndarray:
    """A file's image, which must have `size`, at the size `wanted`, in 0..255."""
    image = read_image(path, intensity=intensity, dtype=dtype)
    if image.shape != tuple(size):
        raise FXError(
            f"{path}: the image is {image.shape[1]} x {image.shape[0]} pixels, its annotation says "
            f"{size[1]} x {size[0]}: prepare the dataset again"
        )
    if dtype == "float32":
        image = image * np.float32(255)
    return resize_image(image, wanted)


def _cache_one(image_root: Path, cache_root: Path, shorter: int, image: Mapping[str, Any]) -> dict[str, Any]:
    """Write the copy of one image unless it is there; the image's new mapping."""
    name = PurePosixPath(str(image["file_name"]))
    if name.is_absolute() or ".." in name.parts:
        raise FXError(f"image {str(name)!r} lies outside its folder {image_root}: a cached copy has no place to be")
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
    """A mask whose file, if it has one, is named from the folder of the copies; masks are not reduced."""
    if not isinstance(mask, Mapping) or "file" not in mask:
        return mask
    return {"file": os.path.relpath(image_root / mask["file"], cache_root)}


def _stamp(path: Path) -> str:
    """The stamp of a cached copy, or ""."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(_STAMP, "")
    except (OSError, SyntaxError):
        return ""


def _write_png(path: Path, image: np.ndarray, stamp: str) -> None:
    """Write a copy with its stamp; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngImagePlugin.PngInfo()
    text.add_text(_STAMP, stamp)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
