"""DICOM files written here in every form the reader knows, and what a viewer would show of them."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from fx_d2.data import image_io
from fx_d2.data.dicom import dicom_size, dicom_tags
from fx_d2.data.image_io import decode_image, image_size, read_image
from fx_d2.structures import FXError

LEVELS = np.linspace(0, 4095, 48 * 64).round().astype(np.uint16).reshape(48, 64)


def _dataset(pixels: np.ndarray, bits: int, **tags: Any) -> Dataset:
    """A grey image; further elements by keyword."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *pixels.shape[:2], 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * pixels.itemsize, bits, bits - 1
    ds.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Function (pixels, bits, **elements) -> the file."""

    def write(pixels: np.ndarray, bits: int, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Path:
        ds = _dataset(pixels, bits, **tags)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        return tmp_path / "a.dcm"

    return write


def _lut(first: int, bits: int, data: list[int]) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(data), first, bits], data
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return [item]


def _close(path: Path, wanted: np.ndarray) -> None:
    """The file shows `wanted` (0..1), in both types."""
    image = read_image(path, dtype="float32")
    assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1
    np.testing.assert_allclose(image, wanted, atol=1e-6)
    assert np.abs(read_image(path).astype(float) - wanted * 255).max() <= 0.5 + 1e-4
    assert image_size(path) == wanted.shape


def test_stored_bits_are_the_range(write: Callable[..., Path]) -> None:
    """12 bits in 16: 4095 is white, nothing is clipped; 8 bits come out as they are."""
    _close(write(LEVELS, 12), LEVELS / 4095)
    byte = (LEVELS // 16).astype(np.uint8)
    np.testing.assert_array_equal(read_image(write(byte, 8)), byte)


def test_monochrome1_is_inverted(write: Callable[..., Path]) -> None:
    _close(write(LEVELS, 12, PhotometricInterpretation="MONOCHROME1"), 1 - LEVELS / 4095)


def test_signed_values(write: Callable[..., Path]) -> None:
    _close(write(LEVELS.astype(np.int16) - 2048, 12), LEVELS / 4095)


def test_window(write: Callable[..., Path]) -> None:
    """The first of several windows, after slope and intercept (centre 1000 and width 1001 are 500 to 1500)."""
    path = write(LEVELS, 12, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[1000.5, 50], WindowWidth=[1001, 10])
    _close(path, np.clip((2.0 * LEVELS - 100 - 500) / 1000, 0, 1))


def test_rescale_alone_keeps_the_range(write: Callable[..., Path]) -> None:
    """A slope without a window stretches nothing; a negative one turns dark and bright."""
    _close(write(LEVELS, 12, RescaleSlope=0.5, RescaleIntercept=7), LEVELS / 4095)
    _close(write(LEVELS, 12, RescaleSlope=-1, RescaleIntercept=0), 1 - LEVELS / 4095)
    window = {"WindowCenter": -2000, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    path = write(LEVELS, 12, RescaleSlope=-1, RescaleIntercept=0, **window)
    _close(path, np.clip((2500 - LEVELS.astype(float)) / 1000, 0, 1))


def test_a_slope_of_zero_is_refused(write: Callable[..., Path]) -> None:
    """All pixels would mean the same value: nothing is black or white."""
    with pytest.raises(FXError, match=r"a\.dcm: .*its rescale slope maps all stored values to 7"):
        read_image(write(LEVELS, 12, RescaleSlope=0, RescaleIntercept=7))


def test_sigmoid(write: Callable[..., Path]) -> None:
    path = write(LEVELS, 12, WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID")
    _close(path, 1 / (1 + np.exp(-4 * (LEVELS.astype(float) - 2000) / 800)))


def test_tables(write: Callable[..., Path]) -> None:
    """A modality table, then a VOI table, each with its own depth; the VOI table goes before a window."""
    voi = [int(v) for v in np.linspace(0, 255, 16) ** 2 / 255]
    modality = [i // 256 for i in range(4096)]
    path = write(
        LEVELS, 12, ModalityLUTSequence=_lut(0, 16, modality), VOILUTSequence=_lut(0, 8, voi), WindowCenter=1,
        WindowWidth=2, ModalityLUTType="US",
    )  # fmt: skip
    _close(path, np.array(voi)[LEVELS // 256] / 255)


def test_a_modality_table_alone(write: Callable[..., Path]) -> None:
    """Its own depth is black to white, also where it does not reach the ends."""
    table = [50 + i // 32 for i in range(4096)]
    _close(write(LEVELS, 12, ModalityLUTSequence=_lut(0, 8, table), ModalityLUTType="US"), (50 + LEVELS // 32) / 255)


@pytest.mark.parametrize("half", [{"WindowCenter": 1000}, {"WindowWidth": 500}])
def test_half_a_window_is_none(write: Callable[..., Path], half: dict[str, int]) -> None:
    _close(write(LEVELS, 12, **half), LEVELS / 4095)


def test_padding_is_black(write: Callable[..., Path]) -> None:
    """Also where the stored padding would be white, and over a range of values."""
    pixels = LEVELS.copy()
    pixels[:5], pixels[5:9] = 0, 3
    path = write(pixels, 12, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0, PixelPaddingRangeLimit=3)
    wanted = 1 - pixels / 4095
    wanted[pixels <= 3] = 0
    _close(path, wanted)


def test_colour_becomes_grey(write: Callable[..., Path]) -> None:
    colour = np.zeros((20, 30, 3), dtype=np.uint8)
    colour[:] = (200, 100, 50)
    path = write(colour, 8, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB")
    _close(path, np.full((20, 30), (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255))


def _encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _compressed(tmp_path: Path, syntax: str) -> tuple[Path, np.ndarray]:
    """A compressed file and the values it holds, 0..1."""
    path = tmp_path / "a.dcm"
    if syntax == JPEGBaseline8Bit:
        smooth = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
        ds = _dataset(smooth, 8)
        ds.PixelData = encapsulate([_encoded(smooth, "JPEG", quality=100)])
        wanted = smooth / 255
    else:
        ds, wanted = _dataset(LEVELS, 12), LEVELS / 4095
        if syntax == RLELossless:
            ds.compress(RLELossless)
        elif syntax == JPEG2000Lossless:
            ds.BitsStored, ds.HighBit, wanted = 16, 15, LEVELS / 65535
            ds.PixelData = encapsulate([_encoded(LEVELS, "JPEG2000", no_jp2=True)])
    if syntax in (JPEGLosslessSV1, JPEGLSLossless):
        ds.save_as(path, enforce_file_format=True)
        _gdcm_compress(path, syntax)
        return path, wanted
    if syntax.is_encapsulated:
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path, wanted


def _gdcm_compress(path: Path, syntax: str) -> None:
    kinds = {
        JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    }
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(kinds[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


SYNTAXES = [
    ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGBaseline8Bit, JPEG2000Lossless,
    JPEGLosslessSV1, JPEGLSLossless,
]  # fmt: skip


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name[:24])
def test_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    """Every lossless form gives the very values; baseline JPEG gives them to a grey level or two."""
    path, wanted = _compressed(tmp_path, syntax)
    tolerance = 2.1 / 255 if syntax == JPEGBaseline8Bit else 1e-6
    np.testing.assert_allclose(read_image(path, dtype="float32"), wanted, atol=tolerance)
    assert image_size(path) == wanted.shape


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *SYNTAXES], ids=lambda uid: uid.name[:24])
def test_truncated(tmp_path: Path, syntax: str) -> None:
    """A file cut short anywhere is refused by name."""
    if syntax == ExplicitVRLittleEndian:
        path = tmp_path / "a.dcm"
        _dataset(LEVELS, 12).save_as(path, enforce_file_format=True)
    else:
        path, _ = _compressed(tmp_path, syntax)
    data = path.read_bytes()
    for length in (0, 100, 140, 300, len(data) // 2, int(len(data) * 0.95), len(data) - 16):
        path.write_bytes(data[:length])
        with pytest.raises(FXError, match="a.dcm") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_refused(write: Callable[..., Path]) -> None:
    """What is not one grey X-ray is named."""
    twice = np.stack([LEVELS, LEVELS])
    path = write(twice, 12, NumberOfFrames=2, Rows=48, Columns=64)
    with pytest.raises(FXError, match="has 2 frames"):
        read_image(path)
    path = write(LEVELS, 12, WindowCenter=10, WindowWidth=0)
    with pytest.raises(FXError, match=r"a\.dcm: broken.*Window Width"):
        read_image(path)
    with pytest.raises(FXError, match="states its own grey range"):
        read_image(write(LEVELS, 12), intensity=(0, 4095))
    with pytest.raises(FXError, match=r"a\.dcm: .*'PALETTE COLOR'"):
        read_image(write(LEVELS, 12, PhotometricInterpretation="PALETTE COLOR"))
    with pytest.raises(FXError, match=r"a\.dcm: .* 17 bits"):  # a table of 32 bits would fill the memory
        read_image(write(LEVELS.astype(np.uint32), 17))


@pytest.mark.parametrize("offset", [0, -2048])
def test_values_beyond_the_stated_bits_are_refused(write: Callable[..., Path], offset: int) -> None:
    """The bits that are not stated are not cut off, which would make the brightest values dark."""
    pixels = LEVELS.astype(np.int16) + offset if offset else LEVELS
    with pytest.raises(FXError, match=rf"a\.dcm: has values {offset} to {4095 + offset}, which exceed BitsStored 10"):
        read_image(write(pixels, 10))
    with pytest.raises(FXError, match=r"a\.dcm: has values -600 to 0, which exceed BitsStored 10"):
        read_image(write(np.array([[-600, 0]], dtype=np.int16), 10))
    colour = np.full((20, 30, 3), 200, dtype=np.uint8)
    path = write(colour, 7, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB")
    with pytest.raises(FXError, match="has values 200 to 200, which exceed BitsStored 7"):
        read_image(path)


def test_tags_of_the_header_are_text(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(LEVELS, 12, PatientID=" p 1 ", PatientSex="F")
    assert dicom_tags(path, ("PatientID", "PatientSex", "ViewPosition", "Rows")) == {
        "PatientID": "p 1",
        "PatientSex": "F",
        "ViewPosition": "",
        "Rows": "48",
    }
    path.write_bytes(path.read_bytes()[:-1000])  # The pixels are not read.
    assert dicom_tags(path, ("PatientSex",)) == {"PatientSex": "F"} and dicom_size(path) == (48, 64)
    film = _dataset(LEVELS, 12)
    del film.Rows
    film.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    with pytest.raises(FXError, match=r"b\.dcm: .*Rows"):
        dicom_size(tmp_path / "b.dcm")
    (tmp_path / "none.dcm").write_bytes(b"no header")
    with pytest.raises(FXError, match=r"none\.dcm: broken or truncated DICOM file"):
        dicom_tags(tmp_path / "none.dcm", ("PatientID",))


def test_missing_package_names_the_extra(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(LEVELS, 12)
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pydicom"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for call in (read_image, image_size):
        with pytest.raises(FXError, match=r"a\.dcm: reading DICOM needs pydicom: pip install -e '\.\[dicom\]'"):
            call(path)


def test_missing_decoder_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pydicom.pixels

    path, _ = _compressed(tmp_path, JPEGLosslessSV1)
    decoder = type("Decoder", (), {"is_available": False})
    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda uid: decoder)
    with pytest.raises(FXError, match=r"JPEG Lossless.*need a decoder: pip install -e '\.\[dicom\]'"):
        read_image(path)


def test_a_content_that_lies_on_no_disk(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is known before its pixels are decoded, and a name decides only whether it may be DICOM at all."""
    path = write(np.arange(12, dtype=np.uint16).reshape(3, 4), 12, PhotometricInterpretation="MONOCHROME1")
    data = path.read_bytes()
    np.testing.assert_array_equal(decode_image(data, "IM1", dtype="float32"), read_image(path, dtype="float32"))
    assert dicom_size("IM1", data) == (3, 4)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 11)
    monkeypatch.setattr(image_io, "read_dicom", pytest.fail)
    with pytest.raises(FXError, match="IM1: 4 x 3 pixels exceed the limit of 11"):
        decode_image(data, "IM1")
