"""An X-ray in memory, for inference and visualization, whatever its source."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL.Image import Image as PILImage

from fx_d2.data.image_io import check_pixels, decode_image, image_size, read_image
from fx_d2.structures import FXError


@dataclass(frozen=True, eq=False)
class Film:
    """A decoded X-ray.

    Attributes:
        name: the file it came from, or None.
        pixels: (H, W), 0 = black to 255 = white; uint8, or float32 at the full bit depth of the file.
    """

    name: str | None
    pixels: np.ndarray = field(repr=False)

    @property
    def grey(self) -> np.ndarray:
        """The pixels rounded to uint8 (H, W), for visualization."""
        return self.pixels if self.pixels.dtype == np.uint8 else np.rint(self.pixels).astype(np.uint8)


Source = str | Path | np.ndarray | PILImage | Film
"""A file that `read_image` supports (PNG, JPEG, DICOM, MHA); grey values uint8 (H, W), RGB uint8 (H, W, 3) or a PIL
image of mode L or RGB, all with 0 = black; or a `Film`."""


def read_film(source: Source | bytes, *, dtype: str = "uint8", name: str | None = None) -> Film:
    """Load an X-ray.

    Args:
        source: see `Source`; or the bytes of a PNG, JPEG or DICOM file, see `decode_image`.
        dtype: "uint8" or "float32", the precision of `pixels`.
        name: name of the X-ray; give it with bytes, which have none. Default: the path of the file.

    Raises:
        FXError: a file that cannot be read, named in the message; or an array or PIL image with undefined black and
            white.
    """
    if isinstance(source, Film):
        return source
    if isinstance(source, bytes):
        return Film(name, _scaled(decode_image(source, name or "image", dtype=dtype)))
    if isinstance(source, str | Path):
        check_pixels(image_size(source), str(source))
        return Film(name or str(source), _scaled(read_image(source, dtype=dtype)))
    if isinstance(source, PILImage) and source.mode not in ("L", "RGB"):
        raise FXError(f"a PIL image of mode {source.mode}: give the path of its file, or an image of mode L or RGB")
    pixels = np.asarray(source)
    shape_known = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not shape_known or not pixels.size:
        raise FXError(
            f"an image must be uint8 (H, W) or (H, W, 3), not {pixels.dtype} {pixels.shape}: scale it so that 0 is "
            "black and 255 white, or give the path of its file"
        )
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return Film(name, grey.astype(dtype, copy=False))


def _scaled(values: np.ndarray) -> np.ndarray:
    """The output of `read_image` in 0..255, same dtype."""
    return values * np.float32(255) if values.dtype == np.float32 else values
