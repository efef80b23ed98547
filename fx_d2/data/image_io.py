"""The X-ray image reader: from any supported file format to grey values between black and white."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import cv2
import kornia_rs.io as kornia_io
import numpy as np
from PIL import Image, UnidentifiedImageError

from fx_d2.data import metaimage
from fx_d2.data.dicom import dicom_size, dicom_tags, read_dicom
from fx_d2.structures import FXError

Intensity = tuple[float, float]
"""The stored values of black and white; black > white means that the image is stored inverted."""

_FULL_RANGE: dict[str, Intensity] = {"uint8": (0, 255), "uint16": (0, 65535)}

_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_TAIL = 4096
"""Bytes at the end of a JPEG that must contain the end marker; some writers add padding after it."""

_CORRUPT = "corrupt image, it cannot be decoded"

_STATED: Intensity = (0, 1)
"""Range of the output of `read_dicom`, which applies the grey range stated by the file."""

_JSRT_SHAPE = (2048, 2048)
_JSRT_INTENSITY: Intensity = (4095, 0)
"""JSRT .IMG files: no header, big-endian 16-bit with 12 bits used, high values are dark (jsrt.or.jp)."""

MAX_PIXELS = 2**26
"""Limit for PNG files and for `decode_image`: twice the largest X-rays in use, and safe for memory."""

_TOO_LARGE = f"more than the limit of {MAX_PIXELS:,} pixels"

_DARK = 2**14
"""A 16-bit file with values below this holds at most 14-bit data and would come out dark over the full range."""


def read_image(path: str | Path, *, intensity: Intensity | None = None, dtype: str = "uint8") -> np.ndarray:
    """Read a JPEG, PNG, DICOM, MHA, MHD or JSRT .IMG file as a grey image (H, W).

    Values are only clipped, stretched or inverted as the file or its annotation specifies. They are mapped to
    (value - black) / (white - black), where black and white are `intensity`, or without it

    - 0 and 255, or 0 and 65535, by the bit depth of a PNG, JPEG or unsigned MHA;
    - as stated by a DICOM file (see `dicom.read_dicom`); intensity must not be given for it;
    - 4095 and 0 for the headerless .IMG files of JSRT.

    Colour is converted to grey with luma weights, alpha is dropped, and EXIF orientation is not applied (boxes and
    masks refer to stored pixels).

    Args:
        path: the file; its format is detected from the first bytes, for .mha, .mhd and .img from the suffix.
        intensity: (black, white) in stored values, as recorded when the dataset was prepared.
        dtype: "uint8": 0..255, rounded; "float32": 0..1, at the full bit depth of the file.

    Raises:
        FXError: a file that is missing, unsupported, truncated or corrupt (PNG checksums and the JPEG end marker are
            verified, since decoders silently return partial images); a PNG of more than MAX_PIXELS; a value outside
            `intensity`; no `intensity` for a file that needs one: 16-bit with at most 14 bits used, or signed or
            fractional values; a missing optional package. The message names the file.
    """
    path = Path(path)
    return _shown(*_stored(path), path, intensity, dtype)


def decode_image(data: bytes, name: str, *, dtype: str = "uint8") -> np.ndarray:
    """`read_image` for a PNG, JPEG or DICOM file in memory, such as an upload.

    Args:
        data: all bytes of the file.
        name: name for error messages; no file is opened.
        dtype: as `read_image`.

    Raises:
        FXError: as `read_image`; also for more than MAX_PIXELS according to the header, before decoding.
    """
    path = Path(name)
    dicom = _is_dicom(data, path)
    if not dicom and not data.startswith((_PNG, _JPEG)):
        raise FXError(f"{name}: not a complete PNG, JPEG or DICOM file" if data else f"{name}: empty file")
    try:
        height, width = dicom_size(path, data) if dicom else _picture_size(io.BytesIO(data))
    except FXError:
        raise
    except Image.DecompressionBombError:
        raise FXError(f"{name}: {_TOO_LARGE}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise FXError(f"{name}: {_CORRUPT}") from None
    check_pixels((height, width), name)
    decoded: np.ndarray | str = read_dicom(data, name) if dicom else _decode(data)
    if isinstance(decoded, str):
        raise FXError(f"{name}: {decoded}")
    return _shown(decoded, _STATED if dicom else _FULL_RANGE[decoded.dtype.name], path, None, dtype)


def check_pixels(size: tuple[int, int], name: str) -> None:
    """FXError if an image of (height, width) has more than MAX_PIXELS."""
    height, width = size
    if height * width > MAX_PIXELS:
        raise FXError(f"{name}: {width} x {height} pixels exceed the limit of {MAX_PIXELS:,}")


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of any file that `read_image` supports, from its header; FXErrors name the file."""
    path = Path(path)
    if path.suffix.lower() in metaimage.SUFFIXES:
        _check_present(path)
        return metaimage.metaimage_size(path)
    try:
        with path.open("rb") as file:
            head = file.read(132)
        if _is_dicom(head, path):
            return dicom_size(path)
        if _is_jsrt(path):
            return _JSRT_SHAPE
        return _picture_size(path)
    except FXError:
        raise
    except Image.DecompressionBombError:
        raise FXError(f"{path}: {_TOO_LARGE}") from None
    except (UnidentifiedImageError, SyntaxError, ValueError):
        raise FXError(f"{path}: {_strange(head)}") from None
    except OSError as error:
        raise FXError(f"{path}: image file cannot be read ({error.strerror or error})") from None


def describe_file(path: Path) -> str:
    """Format and bit depth of an image file from its header: "PNG, 16 bits", "DICOM, 12 bits, MONOCHROME1".

    Raises:
        FXError: as `image_size`.
    """
    image_size(path)
    if path.suffix.lower() in metaimage.SUFFIXES:
        return f"MetaImage, {metaimage.metaimage_type(path)}"
    with path.open("rb") as file:
        head = file.read(132)
    if _is_dicom(head, path):
        tags = dicom_tags(path, ("BitsStored", "PhotometricInterpretation"))
        return f"DICOM, {tags['BitsStored'] or '?'} bits, {tags['PhotometricInterpretation'] or '?'}"
    if _is_jsrt(path):
        return "JSRT .IMG, 12 bits"
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        colour = "" if image.mode.startswith(("L", "I", "1")) else f", {image.mode}"
        return f"{image.format}, {head[24] if image.format == 'PNG' else 8} bits{colour}"


def _picture_size(file: Path | io.BytesIO) -> tuple[int, int]:
    """(height, width) of a PNG or JPEG; raises PIL's exceptions."""
    with Image.open(file, formats=("PNG", "JPEG")) as image:
        return image.height, image.width


def _shown(
    values: np.ndarray, usual: Intensity | None, path: Path, intensity: Intensity | None, dtype: str
) -> np.ndarray:
    """The output of `read_image` from the stored values; `usual` is the default intensity of the file format."""
    if intensity is None and usual == _FULL_RANGE["uint16"] and values.max() < _DARK:
        raise FXError(
            f"{path}: holds 16-bit values up to {values.max()} only: state which values are black and white when "
            "preparing the dataset, for example `intensity` [0, 4095] for 12-bit data"
        )
    if intensity is not None and usual == _STATED:
        raise FXError(f"{path}: a DICOM file states its own grey range; `intensity` must not be given")
    black_white = intensity or usual
    if black_white is None:
        raise FXError(
            f"{path}: values of type {values.dtype} have no natural black and white: state `intensity` [black, white] "
            f"when preparing the dataset (this file: {values.min()} to {values.max()})"
        )
    if intensity is not None:
        _check_range(values, intensity, path)
    return _grey(values, black_white, dtype)


def _stored(path: Path) -> tuple[np.ndarray, Intensity | None]:
    """The stored values (H, W) of a file, and the default intensity of its format (None: unknown)."""
    if path.suffix.lower() in metaimage.SUFFIXES:
        _check_present(path)
        values = metaimage.read_metaimage(path)
        return values, _FULL_RANGE.get(values.dtype.name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FXError(f"{path}: image file cannot be read ({error.strerror})") from None
    if _is_dicom(data, path):
        return read_dicom(data, str(path)), _STATED
    if _is_jsrt(path):
        return _read_jsrt(data, path), _JSRT_INTENSITY
    decoded = _decode(data)
    if isinstance(decoded, str):
        raise FXError(f"{path}: {decoded}")
    return decoded, _FULL_RANGE[decoded.dtype.name]


def _decode(data: bytes) -> np.ndarray | str:
    """The pixels uint8 or uint16 (H, W) of a PNG or JPEG, or an error message."""
    if data.startswith(_PNG):
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        if height * width > MAX_PIXELS:
            # Decoders allocate before they verify; a huge size in a damaged header can exhaust memory.
            return png_problem(data) or _TOO_LARGE
        if _is_plain_grey(data):
            return _decode_grey_png(data, (height, width))
        problem = png_problem(data)
    elif data.startswith(_JPEG):
        problem = "" if _JPEG_END in data[-_TAIL:] else "truncated JPEG (no end marker)"
    else:
        problem = _strange(data)
    if problem:
        return problem
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return _CORRUPT
    if image is None or image.dtype.name not in _FULL_RANGE:
        return _CORRUPT
    if image.ndim == 3:
        image = cv2.cvtColor(image[:, :, :3], cv2.COLOR_BGR2GRAY)
    return image


def _is_plain_grey(data: bytes) -> bool:
    """Whether a PNG is 8- or 16-bit grey without alpha, from its header chunk."""
    header = data[8:26]
    return header[4:8] == b"IHDR" and len(header) == 18 and header[16] in (8, 16) and not header[17]


def _decode_grey_png(data: bytes, size: tuple[int, int]) -> np.ndarray | str:
    """`_decode` for the common X-ray PNG, twice as fast as cv2's libpng; checksums and the end chunk are verified."""
    decode = kornia_io.decode_image_png_u8 if data[24] == 8 else kornia_io.decode_image_png_u16
    try:
        return decode(data, size, "mono")[:, :, 0]
    except Exception:  # kornia_rs raises no narrower class.
        return png_problem(data) or _CORRUPT


def _grey(values: np.ndarray, black_white: Intensity, dtype: str) -> np.ndarray:
    """Map stored values between black and white to uint8 0..255 or float32 0..1."""
    black, white = black_white
    if dtype == values.dtype.name and black_white == _FULL_RANGE["uint8"]:
        return values
    scale = (255 if dtype == "uint8" else 1) / (white - black)
    if values.dtype.name in _FULL_RANGE:
        # A lookup table of the possible values is faster than arithmetic on each pixel.
        table = np.clip((np.arange(np.iinfo(values.dtype).max + 1) - black) * scale, 0, 255)
        return (np.rint(table) if dtype == "uint8" else table).astype(dtype)[values]
    grey = (values.astype(np.float32) - np.float32(black)) * np.float32(scale)
    return (np.rint(grey) if dtype == "uint8" else grey).astype(dtype)


def _check_range(values: np.ndarray, intensity: Intensity, path: Path) -> None:
    """FXError for a value outside black..white: clipping would hide anatomy."""
    low, high = sorted(intensity)
    outside = values.min() if values.min() < low else values.max()
    if not low <= outside <= high or low == high:
        raise FXError(
            f"{path}: holds the value {outside}, outside its `intensity` {list(intensity)}: correct the range and "
            "prepare the dataset again"
        )


def _read_jsrt(data: bytes, path: Path) -> np.ndarray:
    values = np.frombuffer(data, ">u2").reshape(_JSRT_SHAPE).astype(np.uint16)
    _check_range(values, _JSRT_INTENSITY, path)
    return values


def _is_dicom(head: bytes, path: Path) -> bool:
    return head[128:132] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")


def _is_jsrt(path: Path) -> bool:
    """Whether a file is a JSRT .IMG; FXError for an .IMG of another size."""
    if path.suffix.lower() != ".img":
        return False
    wanted, found = 2 * _JSRT_SHAPE[0] * _JSRT_SHAPE[1], path.stat().st_size
    if found != wanted:
        raise FXError(f"{path}: has {found} bytes, but a JSRT .IMG file has {wanted}: truncated, or another format")
    return True


def _check_present(path: Path) -> None:
    if not path.is_file():
        raise FXError(f"{path}: image file cannot be read (No such file or directory)")


def _strange(data: bytes) -> str:
    return "not a complete PNG, JPEG, DICOM, MHA, MHD or JSRT .IMG file; convert it" if data else "empty file"


def png_problem(data: bytes) -> str:
    """Why a PNG is invalid, or "": every chunk checksum must match and the end chunk must be present."""
    position, view = len(_PNG), memoryview(data)
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return "corrupt PNG (checksum mismatch)"
        if view[position + 4 : position + 8] == b"IEND":
            return ""
        position = end + 4
    return "truncated PNG (no end chunk)"
