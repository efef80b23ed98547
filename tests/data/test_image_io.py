"""The image reader: bit depths, colour, and files that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fx_d2.data.image_io import read_image
from fx_d2.structures import FXError

RAMP = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)


def _write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def test_16_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    """A full ramp stays a full ramp, rounded."""
    image = read_image(_write(tmp_path / "a.png", RAMP))
    np.testing.assert_array_equal(image, np.rint(RAMP / 65535 * 255).astype(np.uint8))
    assert image.dtype == np.uint8 and image.min() == 0 and image.max() == 255


@pytest.mark.parametrize(("suffix", "channels"), [("png", 1), ("png", 3), ("png", 4), ("jpg", 1), ("jpg", 3)])
def test_grey_colour_and_alpha(tmp_path: Path, suffix: str, channels: int) -> None:
    """All come out as the same grey image; alpha does not darken."""
    grey = np.full((20, 30), 90, dtype=np.uint8)
    image = np.repeat(grey[:, :, None], channels, axis=2)
    if channels == 4:
        image[:, :, 3] = 7
    read = read_image(_write(tmp_path / f"a.{suffix}", image))
    assert read.shape == (20, 30)
    np.testing.assert_allclose(read.astype(int), 90, atol=1)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    """A file cut short is refused at any length."""
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8)
    path = _write(tmp_path / f"a.{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FXError, match=f"a.{suffix}"):
        read_image(path)


def test_corrupt_png(tmp_path: Path) -> None:
    """A flipped byte in the middle is noticed."""
    path = _write(tmp_path / "a.png", RAMP)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(FXError, match="corrupt PNG"):
        read_image(path)


def test_missing_and_other_formats(tmp_path: Path) -> None:
    """Absent files, text and TIFF are named."""
    with pytest.raises(FXError, match=r"none.png: image file cannot be read"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    for path in (tmp_path / "text.png", _write(tmp_path / "a.tiff", RAMP)):
        with pytest.raises(FXError, match="neither JPEG nor PNG"):
            read_image(path)
    (tmp_path / "fake.jpg").write_bytes(b"\xff\xd8\xff" + b"0" * 50 + b"\xff\xd9")
    with pytest.raises(FXError, match="cannot be decoded"):
        read_image(tmp_path / "fake.jpg")
