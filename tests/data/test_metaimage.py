"""MHA and MHD files: values, sizes, and files that are broken."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from fx_d2.data.image_io import image_size, read_image
from fx_d2.structures import FXError

LEVELS = np.linspace(0, 4095, 40 * 60).round().astype(np.int16).reshape(40, 60)


def _write(path: Path, image: np.ndarray, compressed: bool = False) -> Path:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(path), useCompression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
def test_values(tmp_path: Path, name: str, compressed: bool) -> None:
    """Signed values need a stated range; with it they are read exactly. A stack of one slice is an image."""
    for image in (LEVELS, LEVELS[None]):
        path = _write(tmp_path / name, image, compressed)
        assert image_size(path) == (40, 60)
        with pytest.raises(FXError, match=r"int16 have no natural black and white.*this file: 0 to 4095"):
            read_image(path)
        np.testing.assert_allclose(read_image(path, intensity=(0, 4095), dtype="float32"), LEVELS / 4095, atol=1e-6)
        np.testing.assert_array_equal(read_image(path, intensity=(0, 4095)), np.rint(LEVELS / 4095 * 255))


def test_unsigned_values(tmp_path: Path) -> None:
    """Bytes are read as they are; 12 bits in 16 must be announced."""
    byte = (LEVELS // 16).astype(np.uint8)
    np.testing.assert_array_equal(read_image(_write(tmp_path / "a.mha", byte)), byte)
    with pytest.raises(FXError, match="up to 4095 only"):
        read_image(_write(tmp_path / "a.mha", LEVELS.astype(np.uint16)))


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated(tmp_path: Path, compressed: bool) -> None:
    path = _write(tmp_path / "a.mha", LEVELS, compressed)
    data = path.read_bytes()
    for share in (0.0, 0.02, 0.5, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(FXError, match=r"a.mha: broken or truncated") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
    header = _write(tmp_path / "b.mhd", LEVELS, compressed)
    header.with_suffix(".zraw" if compressed else ".raw").unlink()
    with pytest.raises(FXError, match="b.mhd"):
        read_image(header)


def test_missing_file_volume_and_colour(tmp_path: Path) -> None:
    for call in (read_image, image_size):
        with pytest.raises(FXError, match=r"none.mha: image file cannot be read"):
            call(tmp_path / "none.mha")
        with pytest.raises(FXError, match="one slice"):
            call(_write(tmp_path / "a.mha", np.zeros((3, 5, 7), dtype=np.uint8)))
    colour = SimpleITK.GetImageFromArray(np.zeros((5, 7, 3), dtype=np.uint8), isVector=True)
    SimpleITK.WriteImage(colour, str(tmp_path / "c.mha"))
    with pytest.raises(FXError, match="3 values per pixel"):
        read_image(tmp_path / "c.mha")


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.mha", LEVELS)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(FXError, match=r"needs SimpleITK: pip install -e '\.\[mha\]'"):
        read_image(path)
