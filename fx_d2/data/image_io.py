"""The one reader of X-ray images."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np

from fx_d2.structures import FXError

_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_TAIL = 4096
"""Bytes at the end of a JPEG in which its end marker must be: some writers pad behind it."""


def read_image(path: str | Path) -> np.ndarray:
    """Read a JPEG or PNG (8 or 16 bits, grey, palette, colour, with or without alpha) as uint8 (H, W).

    16-bit values are scaled linearly, 0..65535 to 0..255, and rounded; nothing is clipped, and nothing is stretched
    either: 12-bit data in a 16-bit file comes out dark, so a preparation module must window it. Colour becomes grey by
    the usual luma weights, alpha is dropped, EXIF orientation is not applied (boxes and masks speak of stored pixels).

    Raises:
        FXError: naming the file, when it is missing, of another format, truncated or corrupt. A PNG's checksums are
            verified and a JPEG's end marker is looked for, since decoders return half an image without a word.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FXError(f"{path}: image file cannot be read ({error.strerror})") from None
    if data.startswith(_PNG):
        problem = _png_problem(data)
    elif data.startswith(_JPEG):
        problem = "" if _JPEG_END in data[-_TAIL:] else "truncated JPEG (no end marker)"
    else:
        problem = "empty file" if not data else "neither JPEG nor PNG; convert it (DICOM: when preparing the dataset)"
    if problem:
        raise FXError(f"{path}: {problem}")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise FXError(f"{path}: corrupt image, it cannot be decoded")
    if image.ndim == 3:
        image = cv2.cvtColor(image[:, :, :3], cv2.COLOR_BGR2GRAY) if image.shape[2] >= 3 else image[:, :, 0]
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return image


def _png_problem(data: bytes) -> str:
    """What is wrong with a PNG's chunks, or "": every checksum must hold and the end chunk must be there."""
    position, view = len(_PNG), memoryview(data)
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return "corrupt PNG (a checksum does not hold)"
        if view[position + 4 : position + 8] == b"IEND":
            return ""
        position = end + 4
    return "truncated PNG (no end chunk)"
