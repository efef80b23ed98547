"""Which files inputs stand for, and reading ahead."""

from pathlib import Path

import numpy as np
import pytest

from fx_d2.data.film import Film
from fx_d2.demo.films import find_films, read_ahead
from fx_d2.structures import FXError


def names(found: tuple[Path, ...], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_folders_files_and_patterns(film_folder: Path) -> None:
    """Everything once, in the order of the inputs; what is named is taken whatever it is called."""
    (film_folder / "notes.txt").write_text("x")
    (film_folder / "sub" / "README").write_text("x")
    (film_folder / ".hidden").mkdir()
    (film_folder / ".hidden" / "a.png").write_bytes(b"")
    (film_folder / "circle").symlink_to(film_folder)
    all_films = ["a.png", "b.jpg", "c.dcm", "sub/IM1", "sub/a.png"]
    found = find_films([str(film_folder)])
    assert names(found.paths, film_folder) == all_films
    assert found.others == {"": 1, ".txt": 1} and not found.missing
    (film_folder / "circle").unlink()
    found = find_films(
        [f"{film_folder}/**/*.png", f"{film_folder}/notes.txt", f"{film_folder}/s*", f"{film_folder}/a.png"]
    )
    assert names(found.paths, film_folder) == ["a.png", "sub/a.png", "notes.txt", "sub/IM1"]
    found = find_films([f"{film_folder}/none.png", f"{film_folder}/*.tif", str(film_folder / "c.dcm")])
    assert list(found.missing) == [f"{film_folder}/none.png", f"{film_folder}/*.tif"]
    assert names(found.paths, film_folder) == ["c.dcm"]


def test_names_that_look_like_patterns_are_names(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").write_bytes(b"x")
    assert find_films([str(tmp_path / "a[1].png")]).paths == (tmp_path / "a[1].png",)


@pytest.mark.parametrize("ahead", [1, 3, 10])
def test_films_come_in_order_and_only_so_many_wait(ahead: int) -> None:
    started: list[Path] = []

    def read(path: Path) -> Film:
        started.append(path)
        if path.name == "2":
            raise FXError("2: broken")
        return Film(path.name, np.zeros((2, 2), np.uint8))

    paths = [Path(str(i)) for i in range(6)]
    seen = []
    for path, film in read_ahead(iter(paths), read, ahead):
        seen.append(path)
        assert len(started) <= len(seen) - 1 + ahead
        assert str(film) == "2: broken" if path.name == "2" else isinstance(film, Film) and film.name == path.name
    assert seen == paths
