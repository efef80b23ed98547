"""MetaImage files (.mha, or .mhd with a raw file) as 2-D arrays of stored values, read with SimpleITK.

SimpleITK is installed with `pip install -e '.[mha]'` and imported only when such a file is read.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fx_d2.structures import FXError

SUFFIXES = (".mha", ".mhd")


def read_metaimage(path: Path) -> np.ndarray:
    """Read the stored values (H, W), in the dtype of the file, of an image with one slice and one value per pixel.

    Raises:
        FXError: SimpleITK is missing, a broken or truncated file, a volume or a colour image; the message names the
            file.
    """
    sitk = _simpleitk(path)
    reader = _header(sitk, path)
    size = _size(reader, path)
    try:
        return sitk.GetArrayFromImage(reader.Execute()).reshape(size)
    except RuntimeError:
        raise _broken(path) from None


def metaimage_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header; FXError as in `read_metaimage`."""
    return _size(_header(_simpleitk(path), path), path)


def metaimage_type(path: Path) -> str:
    """The type of the stored values from the header, such as "16-bit signed integer"; FXError as above."""
    sitk = _simpleitk(path)
    return str(sitk.GetPixelIDValueAsString(_header(sitk, path).GetPixelID()))


def _simpleitk(path: Path) -> ModuleType:
    try:
        import SimpleITK
    except ImportError:
        raise FXError(f"{path}: reading MHA and MHD needs SimpleITK: pip install -e '.[mha]'") from None
    return SimpleITK


def _header(sitk: ModuleType, path: Path) -> Any:
    """A SimpleITK reader with the header loaded."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise _broken(path) from None
    return reader


def _size(reader: Any, path: Path) -> tuple[int, int]:
    width, height, *others = reader.GetSize()
    values = reader.GetNumberOfComponents()
    if values != 1 or any(side != 1 for side in others):
        raise FXError(
            f"{path}: has size {reader.GetSize()} with {values} values per pixel; "
            "a chest X-ray has one slice and one value per pixel"
        )
    return height, width


def _broken(path: Path) -> FXError:
    # ITK's exception text lists its source files; the reason itself is already on stderr.
    return FXError(f"{path}: broken or truncated MHA or MHD file, or its raw file is missing")
