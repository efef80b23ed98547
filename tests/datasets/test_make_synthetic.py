"""Drawn releases: same seed same bytes, complete or not there, and every image readable as it was drawn."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from fx_d2.data import read_image
from fx_d2.data.codecs import fill_polygons
from fx_d2.data.image_io import image_size
from fx_d2.structures import FXError

LAYOUTS = sorted(
    path.stem
    for path in (Path(__file__).resolve().parents[2] / "datasets" / "synthetic" / "layouts").glob("*.py")
    if path.stem not in ("__init__", "files")
)


@pytest.fixture
def releases(datasets_folder: Path) -> ModuleType:
    return importlib.import_module("synthetic.releases")


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_image_is_read_as_it_was_drawn(release: Callable[[str], Any], name: str) -> None:
    drawn = release(name)
    assert len(set(drawn.paths)) == len(drawn.films) == 14
    for path, film in drawn.by_path.items():
        drawn_film = film.image if name != "jsrt" else cv2.resize(film.image, (2048, 2048), interpolation=0)
        image = read_image(path, intensity=(0, 4095) if name == "node21" else None)
        assert image_size(path) == image.shape == drawn_film.shape
        # JPEG and windows of few stored values change a pixel, not the picture.
        assert np.abs(image.astype(int) - drawn_film).mean() < 2


def test_two_films_of_a_patient_show_one_body(release: Callable[[str], Any]) -> None:
    films = release("siim_acr").films
    pairs = [(a, b) for a, b in zip(films, films[1:], strict=False) if b.follow_up]
    assert len(pairs) == 3 and len({film.patient for film in films}) == 11
    for first, second in pairs:
        assert (first.patient, first.sex, first.age) == (second.patient, second.sex, second.age)
        assert first.digest("patient") == second.digest("patient") and first.digest() != second.digest()
        assert np.array_equal(first.structures["left_clavicle"], second.structures["left_clavicle"])
        assert not np.array_equal(first.image, second.image)


def test_structures_lie_where_the_body_has_them(release: Callable[[str], Any]) -> None:
    for film in release("vindr_ribcxr").films:
        centre = {name: np.argwhere(mask).mean(0) for name, mask in film.structures.items() if mask.any()}
        for number in range(1, 11):
            assert centre[f"R{number}"][1] < centre["heart"][1] < centre[f"L{number}"][1]
        for side in "RL":
            heights = [centre[f"{side}{number}"][0] for number in range(1, 11)]
            assert heights == sorted(heights)
        for side in ("left", "right"):
            assert centre[f"{side}_clavicle"][0] < centre[f"{side}_lung"][0]
            assert not (film.structures[f"{side}_lung"] & film.structures["heart"]).any()


def test_outlines_give_their_mask_back(datasets_folder: Path) -> None:
    outlines = importlib.import_module("synthetic.layouts.files").outlines
    mask = np.zeros((40, 50), bool)
    mask[3:20, 5:30] = mask[25:35, 10:20] = True
    mask[10, 30:34] = True
    mask[38, 48] = True
    shapes = outlines(mask)
    assert len(shapes) == 2
    mask[38, 48] = False
    assert np.array_equal(fill_polygons(shapes, 40, 50), mask)


def test_same_parameters_same_bytes_and_nothing_to_do(
    releases: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module("make_synthetic").main
    options = ["--size", "96", "--train", "2", "--val", "0", "--test", "1", "--datasets", "candid_ptx,vindr_local"]
    for folder, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert main(["--output", str(tmp_path / folder), "--seed", seed, *options]) == 0
    assert "vindr_local       test        1" in capsys.readouterr().out
    first = digest(tmp_path / "a")
    assert first == digest(tmp_path / "b")
    other = digest(tmp_path / "c")
    images = [name for name in other if not name.endswith((".csv", ".json"))]
    assert len(images) == 6 and all(other[name] != first.get(name) for name in images)
    assert main(["--output", str(tmp_path / "a"), "--seed", "5", *options]) == 0
    assert capsys.readouterr().out.count("already up to date") == 2
    assert main(["--output", str(tmp_path / "a"), "--seed", "6", *options]) == 0
    assert digest(tmp_path / "a") == other


def test_a_folder_that_was_not_drawn_is_left_alone(releases: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "candid_ptx").mkdir()
    with pytest.raises(FXError, match="not a synthetic release"):
        releases.make_releases(tmp_path, seed=0, size=96, counts={"train": 1}, datasets=["candid_ptx"])
    assert [path.name for path in tmp_path.iterdir()] == ["candid_ptx"]


def test_an_interrupted_release_leaves_nothing(
    releases: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: Path, films: Any) -> list[str]:
        next(iter(films))
        (root / "half").write_text("half a release")
        raise FXError("stopped")

    monkeypatch.setattr(releases, "writer", lambda name: fail)
    with pytest.raises(FXError, match="stopped"):
        releases.make_releases(tmp_path, seed=0, size=96, counts={"train": 2}, datasets=["candid_ptx"])
    assert not list(tmp_path.iterdir())


def test_wrong_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], datasets_folder: Path) -> None:
    main = importlib.import_module("make_synthetic").main
    (tmp_path / "file").write_text("")
    for wrong in (["--size", "8"], ["--datasets", "elsewhere"], ["--output", str(tmp_path / "file")]):
        assert main(["--output", str(tmp_path / "out"), "--train", "1", *wrong]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
