"""The image reader: bit depths, colour, and files that are not what they should be."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from fx_d2.data import image_io as module
from fx_d2.data.image_io import decode_image, describe_file, image_size, read_image
from fx_d2.structures import FXError

RAMP = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)


def _write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def test_12_bit_data_must_be_announced(tmp_path: Path) -> None:
    """A 16-bit file of 12-bit data is neither read dark nor stretched by guess, and never clipped."""
    ramp = (RAMP // 16).astype(np.uint16)
    path = _write(tmp_path / "a.png", ramp)
    with pytest.raises(FXError, match=r"a.png: holds 16-bit values up to 4095 only: state"):
        read_image(path)
    exact = ramp / 4095
    np.testing.assert_array_equal(read_image(path, intensity=(0, 4095)), np.rint(exact * 255).astype(np.uint8))
    np.testing.assert_allclose(read_image(path, intensity=(0, 4095), dtype="float32"), exact, atol=1e-6)
    np.testing.assert_allclose(read_image(path, intensity=(4095, 0), dtype="float32"), 1 - exact, atol=1e-6)
    assert read_image(path, intensity=(0, 65535)).max() == 16
    with pytest.raises(FXError, match=r"a.png: holds the value 4095, outside its `intensity` \[0, 4000\]"):
        read_image(path, intensity=(0, 4000))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("shape", [(1, 1), (33, 7), (64, 129)])
def test_every_filter_of_grey_png(tmp_path: Path, depth: int, shape: tuple[int, int]) -> None:
    """What PIL and cv2 wrote is read exactly, and both sides come out the right way round."""
    noise = np.random.default_rng(0).integers(0, 2**depth, shape).astype(f"uint{depth}")
    noise[0, 0] = 2**depth - 1
    for image in (noise, np.sort(noise, axis=0), np.sort(noise, axis=1)):
        Image.fromarray(image).save(tmp_path / "pil.png")
        for path in (_write(tmp_path / "cv2.png", image), tmp_path / "pil.png"):
            wanted = (image / (2**depth - 1)).astype(np.float32)
            np.testing.assert_allclose(read_image(path, dtype="float32"), wanted, atol=1e-7)
            assert image_size(path) == shape


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_other_kinds_of_png(tmp_path: Path, mode: str) -> None:
    """One bit, palette and alpha: the picture as it is seen."""
    image = Image.new("L", (30, 20), 255)
    image.paste(0, (10, 5, 20, 15))
    image.convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(image))


def test_jsrt_file(tmp_path: Path) -> None:
    """Big-endian, 12 bits, inverted; a shorter file or a larger value is refused."""
    values = (np.arange(2048 * 2048) % 4096).astype(">u2")
    path = tmp_path / "JPCLN001.IMG"
    path.write_bytes(values.tobytes())
    wanted = (1 - np.asarray(values, dtype=float) / 4095).reshape(2048, 2048)
    np.testing.assert_allclose(read_image(path, dtype="float32"), wanted, atol=1e-6)
    np.testing.assert_array_equal(read_image(path), np.rint(wanted * 255))
    assert image_size(path) == (2048, 2048)
    path.write_bytes(values.astype("<u2").tobytes())
    with pytest.raises(FXError, match=r"JPCLN001.IMG: holds the value \d+, outside"):
        read_image(path)
    path.write_bytes(values.tobytes()[:-1])
    for call in (read_image, image_size):
        with pytest.raises(FXError, match=r"JPCLN001.IMG: has 8388607 bytes"):
            call(path)


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
    path = _write(tmp_path / f"a.{suffix}", image)
    read = read_image(path)
    assert read.shape == image_size(path) == (20, 30)
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
    if share == 0:
        with pytest.raises(FXError, match="empty file"):
            image_size(path)


def test_corrupt_png(tmp_path: Path) -> None:
    """A flipped byte in the middle is noticed."""
    path = _write(tmp_path / "a.png", RAMP)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(FXError, match="corrupt PNG"):
        read_image(path)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_png_of_a_size_that_no_memory_holds(tmp_path: Path, mode: str) -> None:
    """Damage or not, the size in the header is looked at before a decoder takes memory for it."""
    Image.new(mode, (64, 48)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16] ^= 64  # of the width
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(FXError, match=r"a.png: corrupt PNG \(checksum mismatch\)"):
        read_image(tmp_path / "a.png")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(FXError, match="a.png: more than the limit of 67,108,864 pixels"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("depth", [8, 16])
def test_interlaced_png(tmp_path: Path, depth: int) -> None:
    """Seven pictures of every eighth pixel and so on, as slow networks once liked them."""
    image = np.random.default_rng(0).integers(0, 2**depth, (9, 11)).astype(f">u{depth // 8}")
    image[0, 0] = 2**depth - 1
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    lines = [line for y, x, down, right in passes for line in image[y::down, x::right] if len(line)]
    header = b"".join(side.to_bytes(4, "big") for side in image.shape[::-1]) + bytes((depth, 0, 0, 0, 1))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(b"\0" + x.tobytes() for x in lines))), (b"IEND", b""))
    data = module._PNG
    for kind, body in chunks:
        data += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_allclose(read_image(tmp_path / "a.png", dtype="float32"), image / (2**depth - 1), atol=1e-7)


def test_what_a_file_is(tmp_path: Path, film_folder: Path) -> None:
    """Kind and depth, from the header; colour is said."""
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(RAMP), str(tmp_path / "a.mha"))
    (tmp_path / "a.mha").rename(tmp_path / "a.MHA")
    (tmp_path / "a.IMG").write_bytes(bytes(2 * 2048 * 2048))
    for path, said in (
        (_write(tmp_path / "a.png", RAMP), "PNG, 16 bits"),
        (_write(tmp_path / "b.png", np.zeros((3, 2, 3), np.uint8)), "PNG, 8 bits, RGB"),
        (_write(tmp_path / "c.jpg", np.zeros((3, 2), np.uint8)), "JPEG, 8 bits"),
        (film_folder / "c.dcm", "DICOM, 8 bits, MONOCHROME1"),
        (film_folder / "sub" / "IM1", "DICOM, 8 bits, MONOCHROME1"),
        (tmp_path / "a.IMG", "JSRT .IMG, 12 bits"),
    ):
        assert describe_file(path) == said
    assert describe_file(tmp_path / "a.MHA").startswith("MetaImage, ")
    with pytest.raises(FXError, match="none.png"):
        describe_file(tmp_path / "none.png")


def test_missing_and_other_formats(tmp_path: Path) -> None:
    """Absent files, text and TIFF are named."""
    with pytest.raises(FXError, match=r"none.png: image file cannot be read"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    for path in (tmp_path / "text.png", _write(tmp_path / "a.tiff", RAMP)):
        with pytest.raises(FXError, match="not a complete PNG, JPEG"):
            read_image(path)
    (tmp_path / "fake.jpg").write_bytes(b"\xff\xd8\xff" + b"0" * 50 + b"\xff\xd9")
    with pytest.raises(FXError, match="cannot be decoded"):
        read_image(tmp_path / "fake.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_content_is_read_as_its_file(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path / f"a{suffix}", (RAMP // 256).astype(np.uint8))
    data = path.read_bytes()
    for dtype in ("uint8", "float32"):
        np.testing.assert_array_equal(decode_image(data, "x", dtype=dtype), read_image(path, dtype=dtype))
    for broken in (data[: len(data) // 2], data[:40]):
        with pytest.raises(FXError, match=r"^some name: "):
            decode_image(broken, "some name")


def test_contents_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kinds, whatever they are called, and images too large to decode, by their header alone."""
    path = _write(tmp_path / "a.png", (RAMP // 256).astype(np.uint8))
    with pytest.raises(FXError, match="x.png: empty file"):
        decode_image(b"", "x.png")
    for name in ("x.mha", "x.img", str(path)):
        with pytest.raises(FXError, match="not a complete PNG, JPEG or DICOM file"):
            decode_image(b"GIF89a", name)
    with pytest.raises(FXError, match=r"x.dcm: broken or truncated DICOM file"):
        decode_image(b"GIF89a", "x.dcm")
    monkeypatch.setattr(module, "MAX_PIXELS", RAMP.size)
    assert decode_image(path.read_bytes(), "x.png").shape == RAMP.shape
    monkeypatch.setattr(module, "MAX_PIXELS", RAMP.size - 1)
    monkeypatch.setattr(module, "_decode", pytest.fail)
    with pytest.raises(FXError, match=r"x.png: 64 x 48 pixels exceed the limit of 3,071"):
        decode_image(path.read_bytes(), "x.png")
    header = path.read_bytes().replace((48).to_bytes(4, "big") + b"\x08", (2**31 - 1).to_bytes(4, "big") + b"\x08")
    with pytest.raises(FXError, match="x.png: "):
        decode_image(header, "x.png")
