"""A film in memory; arrays and PIL images are tested with the predictor."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from fx_d2.data.film import Film, read_film
from fx_d2.structures import FXError

DEEP = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "a.png"), DEEP)
    return tmp_path / "a.png"


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_file_and_its_content_are_the_same_film(file: Path, dtype: str) -> None:
    film, again = read_film(file, dtype=dtype), read_film(file.read_bytes(), dtype=dtype, name="b.png")
    assert film.name == str(file) and again.name == "b.png" and film.pixels.dtype == dtype
    assert np.array_equal(film.pixels, again.pixels)
    np.testing.assert_allclose(film.pixels, DEEP / 65535 * 255, atol=0.5 if dtype == "uint8" else 1e-4)
    assert film.grey.dtype == np.uint8 and np.array_equal(film.grey, read_film(file).pixels)


def test_what_was_read_is_taken_as_it_is(file: Path) -> None:
    film = Film("x", np.zeros((4, 5), np.uint8))
    assert read_film(film) is film and read_film(np.zeros((4, 5), np.uint8), dtype="float32").pixels.dtype == np.float32
    with pytest.raises(FXError, match=r"^c\.png: truncated PNG"):
        read_film(file.read_bytes()[:-9], name="c.png")


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of kilobytes may unpack to more than a machine's memory."""
    (tmp_path / "huge.png").write_bytes(cv2.imencode(".png", np.zeros((9000, 8000), np.uint8))[1].tobytes())
    monkeypatch.setattr("fx_d2.data.image_io._decode", pytest.fail)
    with pytest.raises(FXError, match=r"huge\.png: 8000 x 9000 pixels exceed the limit of 67,108,864"):
        read_film(tmp_path / "huge.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(FXError, match=r"huge\.png: more than the limit of 67,108,864 pixels"):
        read_film(tmp_path / "huge.png")
    with pytest.raises(FXError, match=r"^up\.png: more than the limit of 67,108,864 pixels"):
        read_film((tmp_path / "huge.png").read_bytes(), name="up.png")
