"""DICOM X-rays as grey values between black and white, the way a viewer shows them first.

pydicom reads the file and applies the tables it carries; python-gdcm decodes compressed pixels. Both come with
`pip install -e '.[dicom]'` and are imported only when a DICOM file is read.
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
"""Decoder by transfer syntax, where not pydicom's first: on damaged baseline JPEG gdcm can end the whole process."""


def read_dicom(data: bytes, where: str) -> np.ndarray:
    """The picture float32 (H, W) in [0, 1], 0 = black, of a DICOM file's bytes.

    Stored values go through the modality table (or rescale slope and intercept), then through the first VOI table or
    else the first window; without either, the full range of the stored bits is black to white. MONOCHROME1 is turned
    so that bone is bright. Pixels of the padding value are black. Values outside a window become black or white: that
    is what the window says, and nothing else is cut off. Colour (some scanned films) becomes grey by luma weights.

    Raises:
        FXError: beginning with `where`: pydicom or the decoder is missing, a broken or truncated file, several frames,
            a palette, or stored values beyond the stated bits.
    """
    pydicom = _pydicom(where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of private oddities that do not touch the picture.
            dataset = pydicom.dcmread(io.BytesIO(data))
            _check_decoder(pydicom, dataset, where)
            return _picture(dataset, pydicom.pixels, where)
    except FXError:
        raise
    except Exception as error:  # What a broken file makes pydicom and the decoders raise is not a closed list.
        raise FXError(f"{where}: broken or truncated DICOM file ({_one_line(error)})") from None


def dicom_tags(path: str | Path, names: Sequence[str], data: bytes | None = None) -> dict[str, str]:
    """Tags of a DICOM file's header by keyword, such as "PatientID", as text; "" where the file has none.

    Only the header is read: from `data`, where the file's content is given. FXError naming the file when it is no
    DICOM file.
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
    """(height, width) from a DICOM header, of a file or its content; FXError when it has none."""
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
    """FXError when the pixels are compressed in a way that nothing installed decodes."""
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
    """The picture of `read_dicom`."""
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise FXError(f"{where}: has {dataset.NumberOfFrames} frames; a chest X-ray has one")
    plugin = _PLUGIN.get(dataset.file_meta.TransferSyntaxUID, "")
    # pydicom would cut bits beyond the stated ones off: bright values would come out dark.
    stored = pixels.pixel_array(dataset, decoding_plugin=plugin, correct_unused_bits=False)
    bits = int(dataset.BitsStored)
    low = -(2 ** (bits - 1)) if dataset.PixelRepresentation == 1 else 0
    if stored.min() < low or stored.max() >= low + 2**bits:
        raise FXError(
            f"{where}: has values {stored.min()} to {stored.max()}, beyond the {bits} bits it states; convert the file"
        )
    if dataset.SamplesPerPixel == 3:
        return (stored @ np.array([0.299, 0.587, 0.114]) / (2**bits - 1)).astype(np.float32)
    kind = str(dataset.PhotometricInterpretation)
    if stored.ndim != 2 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise FXError(f"{where}: an image of kind {kind!r} and shape {stored.shape} is not a grey X-ray; convert it")
    if not 1 <= bits <= 16 or not np.issubdtype(stored.dtype, np.integer):
        raise FXError(f"{where}: pixels of type {stored.dtype} and {bits} bits are not supported; convert the file")
    levels = np.arange(low, low + 2**bits)
    # All steps act on single values: they are done once for each possible value, not once for each pixel.
    table = _shade(levels, dataset, pixels)
    if kind == "MONOCHROME1":
        table = 1 - table
    table[_padding(levels, dataset)] = 0
    return table.astype(np.float32)[stored.astype(np.int64) - low]


def _shade(levels: np.ndarray, dataset: Any, pixels: ModuleType) -> np.ndarray:
    """Share of the output range, float64 in [0, 1], of each stored level; small values are dark (MONOCHROME2)."""
    values = pixels.apply_modality_lut(levels, dataset)
    if dataset.get("ModalityLUTSequence"):
        first, last = 0.0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    else:
        first, last = float(values[0]), float(values[-1])
    if dataset.get("VOILUTSequence"):
        shown = pixels.apply_voi(np.rint(values).astype(np.int64), dataset)
        first, last = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        # From the image of the first level to that of the last, which a negative slope puts in falling order.
        shown = pixels.apply_windowing(values, dataset)
    else:
        shown, first, last = values, min(first, last), max(first, last)
    return np.clip((np.asarray(shown, dtype=np.float64) - first) / (last - first), 0, 1)


def _padding(levels: np.ndarray, dataset: Any) -> np.ndarray:
    """Which levels, bool (N,), stand for pixels outside the picture."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(len(levels), dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = value if limit is None else limit
    return (levels >= min(value, limit)) & (levels <= max(value, limit))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
