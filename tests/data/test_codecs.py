"""Codecs of the releases: cases drawn by hand, round trips, and codes that are broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fx_d2.data.codecs import (
    decode_absolute_rle,
    decode_points,
    decode_relative_rle,
    encode_absolute_rle,
    encode_relative_rle,
    fill_polygons,
    merge_masks,
    read_mask_file,
)
from fx_d2.structures import FXError

HAND = np.array([[0, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1]], dtype=np.uint8)
"""Down the columns: 001 110 000 011. Along the rows: 0100 0101 1001."""

MASKS = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1))


def test_relative_code_by_hand() -> None:
    np.testing.assert_array_equal(decode_relative_rle("2 3 5 2", 3, 4), HAND)
    assert encode_relative_rle(HAND) == "2 3 5 2"


def test_absolute_code_by_hand() -> None:
    np.testing.assert_array_equal(decode_absolute_rle("2 1 6 1 8 2 12 1", 3, 4), HAND)
    assert encode_absolute_rle(HAND) == "2 1 6 1 8 2 12 1"


@pytest.mark.parametrize("text", ["", " ", "-1", " -1"])
@pytest.mark.parametrize("decode", [decode_relative_rle, decode_absolute_rle])
def test_empty_codes(text: str, decode: type) -> None:
    mask = decode(text, 3, 4)
    assert mask.shape == (3, 4) and mask.dtype == np.uint8 and not mask.any()


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_round_trips(mask: np.ndarray) -> None:
    for encode, decode in (
        (encode_relative_rle, decode_relative_rle),
        (encode_absolute_rle, decode_absolute_rle),
    ):
        for written in (mask, mask * np.uint8(255), np.asfortranarray(mask)):
            np.testing.assert_array_equal(decode(encode(written), *mask.shape), mask)


def test_full_mask() -> None:
    assert decode_relative_rle("0 12", 3, 4).all() and decode_absolute_rle("1 12", 3, 4).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 3 5", "3 numbers"),
        ("-1 3", "number -1"),
        ("2 -3", "number -3"),
        ("2 3 5 9", "ends at pixel 19"),
        ("2 x", "not an integer"),
        ("2.5 1", "not an integer"),
        ("99999999999999999999 1", "not an integer"),
        ("9223372036854775807 9223372036854775807", "beyond any image"),
        ("1 2 99999999999 1", "number 99999999999, beyond any image"),
    ],
)
def test_broken_relative_codes(text: str, message: str) -> None:
    with pytest.raises(FXError, match=message):
        decode_relative_rle(text, 3, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 2", "counted from 1"),
        ("3 2 1 1", "unsorted or"),
        ("1 1 9 2 5 1", "unsorted or"),
        ("1 3 2 4", "overlapping runs"),
        ("1 13", "pixel 13"),
    ],
)
def test_broken_absolute_codes(text: str, message: str) -> None:
    with pytest.raises(FXError, match=message):
        decode_absolute_rle(text, 3, 4)


def test_polygons_are_a_union() -> None:
    """The overlap of two squares is inside, not a hole; corners outside the image are cut off."""
    squares = [[[1, 1], [5, 1], [5, 5], [1, 5]], [[3.2, 3.4], [20, 3], [20, 20], [3, 20]]]
    mask = fill_polygons(squares, 8, 10)
    wanted = np.zeros((8, 10), dtype=np.uint8)
    wanted[1:6, 1:6] = 1
    wanted[3:, 3:] = 1
    np.testing.assert_array_equal(mask, wanted)
    assert not fill_polygons([], 8, 10).any()


@pytest.mark.parametrize("polygon", [[], [1, 2], [[1, 2, 3]], [[1, "a"]], [[1, float("nan")]], [[1], [1, 2]]])
def test_broken_polygons(polygon: list[object]) -> None:
    with pytest.raises(FXError, match="polygon 0"):
        fill_polygons([polygon], 8, 10)  # type: ignore[list-item]


def test_points() -> None:
    points = [{"x": 1, "y": 2}, {"x": 4, "y": 2}, {"x": 4, "y": 3}, {"x": 1, "y": 3}]
    mask = decode_points(points, 6, 6)
    assert mask[2:4, 1:5].all() and mask.sum() == 8
    for nothing in ("None", None, []):
        assert not decode_points(nothing, 6, 6).any()
    for wrong in ("none?", [{"x": 1}], [3]):
        with pytest.raises(FXError, match="contour"):
            decode_points(wrong, 6, 6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind", ["bool", "0/1", "0/255", "16 bits", "palette", "turned palette", "colour", "alpha", "gif"]
)
def test_mask_files(tmp_path: Path, kind: str) -> None:
    """The same mask comes out of every form."""
    white = Image.fromarray(HAND * np.uint8(255))
    turned = Image.fromarray(1 - HAND, mode="P")  # colour 0 is the inside
    turned.putpalette([255, 255, 255, 0, 0, 0])
    image, name = {
        "bool": (white.convert("1"), "a.png"),
        "0/1": (Image.fromarray(HAND), "a.png"),
        "0/255": (white, "a.png"),
        "16 bits": (Image.fromarray(HAND.astype(np.uint16) * 300), "a.png"),
        "palette": (white.convert("P"), "a.png"),
        "turned palette": (turned, "a.png"),
        "alpha": (white.convert("RGBA"), "a.png"),
        "colour": (Image.merge("RGB", (white.point(lambda _: 0), white, white.point(lambda _: 0))), "a.png"),
        "gif": (white, "a.gif"),
    }[kind]
    image.save(tmp_path / name)
    mask = read_mask_file(tmp_path / name)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, HAND)


def test_soft_edges_and_label_maps(tmp_path: Path) -> None:
    """Edges are cut in the middle; a map of labels is refused, as is a JPEG."""
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 100, 200, 255]], dtype=np.uint8)).save(path)
    assert read_mask_file(path).tolist() == [[0, 0, 1, 1]]
    for labels in ([0, 1, 2, 3], [1, 2]):  # The second has no background: which of its values is inside, nothing tells.
        Image.fromarray(np.array([labels], dtype=np.uint8)).save(path)
        with pytest.raises(FXError, match=rf"a.png: a mask has 0 and one other value, this file has {len(labels)}"):
            read_mask_file(path)
    Image.fromarray(np.array([[7, 7]], dtype=np.uint8)).save(path)
    assert read_mask_file(path).tolist() == [[1, 1]]
    Image.fromarray(HAND).save(tmp_path / "a.jpg")
    with pytest.raises(FXError, match="JPEG"):
        read_mask_file(tmp_path / "a.jpg")


def test_unreadable_mask_files(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (200, 200), dtype=np.uint8) * 255
    for name in ("a.png", "a.gif"):
        Image.fromarray(noise).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        for length in (0, 5, len(data) // 2):
            (tmp_path / name).write_bytes(data[:length])
            with pytest.raises(FXError, match=name):
                read_mask_file(tmp_path / name)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for place in (len(data) // 2, -13):  # in the pixels; in their checksum alone, which Pillow does not look at
        damaged = bytearray(data)
        damaged[place] ^= 1
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(FXError, match="a.png"):
            read_mask_file(tmp_path / "a.png")
    with pytest.raises(FXError, match="none.png: mask file cannot be read"):
        read_mask_file(tmp_path / "none.png")


def test_a_mask_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses it with an error of its own class."""
    Image.fromarray(HAND).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(FXError, match=r"a\.png: Image size \(12 pixels\) exceeds limit"):
        read_mask_file(tmp_path / "a.png")


def test_merge() -> None:
    """Each mask adds its pixels, and 255 and 1 on one pixel do not add up to 0."""
    merged = merge_masks(
        [np.array([row], dtype=np.uint8) for row in ([255, 2, 0, 0, 0], [1, 0, 7, 0, 0], [0, 0, 0, 1, 0])]
    )
    assert merged.tolist() == [[1, 1, 1, 1, 0]] and merged.dtype == np.uint8
    for wrong in ([], [np.zeros((2, 2)), np.zeros((2, 3))], [np.zeros(3), np.zeros(3)]):
        with pytest.raises(FXError, match="masks to merge"):
            merge_masks(wrong)
