"""DICOM X-rays as grey values between black and white, as a viewer displays them by default.

pydicom reads the file and applies its lookup tables; python-gdcm decodes compressed pixels. Both are installed with
`pip install -e '.[dicom]'` and imported only when a DICOM file is read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fx_d2.structures import FXError

EXTRA = "pip install -e '.[dicom]'"

_PLUGIN = {"1.2.840.10008.1.2.4.50": "pillow"}
"""Decoder plugin by transfer syntax, overriding pydicom's default: gdcm can crash on damaged baseline JPEG."""


def read_dicom(data: bytes, where: str) -> np.ndarray:
    """Decode the bytes of a DICOM file to an image float32 (H, W) in [0, 1], 0 = black.

    Stored values pass through the modality LUT (or rescale slope and intercept), then the first VOI LUT, else the first
    window. Without either, the full range of the stored bits is mapped to black..white. MONOCHROME1 is inverted, so
    that bone is bright. Padding pixels are black. Only values outside the window are clipped. Colour (some scanned
    films) is converted to grey with luma weights.

    Raises:
        FXError: pydicom or the decoder is missing, a broken or truncated file, several frames, a palette, or stored
            values that exceed BitsStored; the message starts with `where`.
    """
    pydicom = _pydicom(where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of oddities in private tags that do not affect the image.
            dataset = pydicom.dcmread(io.BytesIO(data))
            _check_decoder(pydicom, dataset, where)
            return _picture(dataset, pydicom.pixels, where)
    except FXError:
        raise
    except Exception as error:  # pydicom and the decoders raise all kinds of exceptions on broken files.
        raise FXError(f"{where}: broken or truncated DICOM file ({_one_line(error)})") from None


def dicom_tags(path: str | Path, names: Sequence[str], data: bytes | None = None) -> dict[str, str]:
    """Read tags from a DICOM header by keyword, such as "PatientID", as strings; "" if a tag is absent.

    Args:
        path: the file.
        names: tag keywords.
        data: content of the file, if already loaded.

    Raises:
        FXError: not a DICOM file; the message names it.
    """
    pydicom = _pydicom(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = path if data is None else io.BytesIO(data)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(names))
            return {name: str(dataset.get(name, "")).strip() for name in names}
    except Exception as error:  # As above.
        raise FXError(f"{path}: broken or truncated DICOM file ({_one_line(error)})") from None


def dicom_size(path: str | Path, data: bytes | None = None) -> tuple[int, int]:
    """(height, width) from the header of a DICOM file, or of its content `data`; FXError if they are absent."""
    tags = dicom_tags(path, ("Rows", "Columns"), data)
    if not all(tags.values()):
        raise FXError(f"{path}: broken or truncated DICOM file (no Rows and Columns)")
    return int(tags["Rows"]), int(tags["Columns"])


def _pydicom(where: str) -> ModuleType:
    try:
        import pydicom.pixels
    except ImportError:
        raise FXError(f"{where}: reading DICOM needs pydicom: {EXTRA}") from None
    return pydicom


def _check_decoder(pydicom: ModuleType, dataset: Any, where: str) -> None:
    """FXError if no installed decoder supports the transfer syntax."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        available = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        raise FXError(f"{where}: pixels compressed as {syntax.name!r} are not supported; convert the file") from None
    if not available:
        raise FXError(f"{where}: pixels compressed as {syntax.name!r} need a decoder: {EXTRA}")


def _picture(dataset: Any, pixels: ModuleType, where: str) -> np.ndarray:
    """The image of `read_dicom`."""
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise FXError(f"{where}: has {dataset.NumberOfFrames} frames; a chest X-ray has one")
    plugin = _PLUGIN.get(dataset.file_meta.TransferSyntaxUID, "")
    # By default pydicom masks bits above BitsStored, which would turn bright values dark.
    stored = pixels.pixel_array(dataset, decoding_plugin=plugin, correct_unused_bits=False)
    bits = int(dataset.BitsStored)
    low = -(2 ** (bits - 1)) if dataset.PixelRepresentation == 1 else 0
    if stored.min() < low or stored.max() >= low + 2**bits:
        raise FXError(
            f"{where}: has values {stored.min()} to {stored.max()}, which exceed BitsStored {bits}; convert the file"
        )
    if dataset.SamplesPerPixel == 3:
        return (stored @ np.array([0.299, 0.587, 0.114]) / (2**bits - 1)).astype(np.float32)
    kind = str(dataset.PhotometricInterpretation)
    if stored.ndim != 2 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise FXError(f"{where}: an image of kind {kind!r} and shape {stored.shape} is not a grey X-ray; convert it")
    if not 1 <= bits <= 16 or not np.issubdtype(stored.dtype, np.integer):
        raise FXError(f"{where}: pixels of type {stored.dtype} and {bits} bits are not supported; convert the file")
    levels = np.arange(low, low + 2**bits)
    # All steps are pointwise, so they are applied once to each possible value instead of each pixel.
    table = _shade(levels, dataset, pixels)
    if kind == "MONOCHROME1":
        table = 1 - table
    table[_padding(levels, dataset)] = 0
    return table.astype(np.float32)[stored.astype(np.int64) - low]


def _shade(levels: np.ndarray, dataset: Any, pixels: ModuleType) -> np.ndarray:
    """The grey value of each stored level, float64 in [0, 1]; small values are dark (MONOCHROME2)."""
    values = pixels.apply_modality_lut(levels, dataset)
    if dataset.get("ModalityLUTSequence"):
        first, last = 0.0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    else:
        first, last = float(values[0]), float(values[-1])
    if dataset.get("VOILUTSequence"):
        shown = pixels.apply_voi(np.rint(values).astype(np.int64), dataset)
        first, last = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        # `first` and `last` are the rescaled end levels; a negative slope makes them descending.
        shown = pixels.apply_windowing(values, dataset)
    else:
        shown, first, last = values, min(first, last), max(first, last)
    if first == last:
        raise ValueError(f"its rescale slope maps all stored values to {first:g}")
    return np.clip((np.asarray(shown, dtype=np.float64) - first) / (last - first), 0, 1)


def _padding(levels: np.ndarray, dataset: Any) -> np.ndarray:
    """Which levels, bool (N,), are padding."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(len(levels), dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = value if limit is None else limit
    return (levels >= min(value, limit)) & (levels <= max(value, limit))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
