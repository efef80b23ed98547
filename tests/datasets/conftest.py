"""Drawn releases for the tests of the preparation scripts, each drawn once, and a function that prepares them."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fx_d2.data.annotations import load_spec, load_split
from fx_d2.data.table import BY_NAME
from fx_d2.structures import SPLITS

FOLDER = Path(__file__).resolve().parents[2] / "datasets"
COUNTS = {"train": 8, "val": 2, "test": 4}
SIZE = 96


@dataclass(frozen=True)
class Release:
    """A drawn release: its folder, the films that were drawn and the path of each film's image in the folder.

    A test that changes the folder works on a copy of it.
    """

    root: Path
    films: tuple[Any, ...]
    paths: tuple[str, ...]

    @property
    def by_path(self) -> dict[str, Any]:
        """Film by the absolute path of its image."""
        return {str(self.root / path): film for path, film in zip(self.paths, self.films, strict=True)}


@pytest.fixture(scope="session", autouse=True)
def datasets_folder() -> Iterator[Path]:
    """The folder of the scripts, from which `synthetic` and the scripts are imported."""
    sys.path.insert(0, str(FOLDER))
    yield FOLDER
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="session")
def release(datasets_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Release]:
    """Function: name of a row -> its drawn release of 8, 2 and 4 films of 96 pixels."""
    from synthetic.layouts import writer
    from synthetic.releases import draw_films

    made: dict[str, Release] = {}

    def get(name: str) -> Release:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            films = tuple(draw_films(BY_NAME[name], seed=7, size=SIZE, counts=COUNTS))
            made[name] = Release(root, films, tuple(writer(name)(root, films)))
        return made[name]

    return get


Prepared = dict[str, list[tuple[Any, dict[str, Any]]]]
"""By split: the film that was drawn, and its dict as `load_split` gives it."""


@pytest.fixture
def prepare(release: Callable[[str], Release], tmp_path: Path) -> Callable[..., Prepared]:
    """Function (row, *options, sub="", name=row) -> what prepare_<row>.py makes of the row's release.

    `sub` is the folder in the release that the script is given, `name` that of what it writes.
    """

    def run(row: str, *options: str, sub: str = "", name: str = "") -> Prepared:
        drawn = release(row)
        command = [str(drawn.root / sub), "--output", str(tmp_path / "prepared"), "--workers", "0", *options]
        assert importlib.import_module(f"prepare_{row}").main(command) == 0
        folder = tmp_path / "prepared" / (name or row)
        spec = load_spec(folder)
        files = {split: folder / f"{split}.json" for split in SPLITS if (folder / f"{split}.json").exists()}
        films = drawn.by_path
        return {
            split: [(films[record["file_name"]], record) for record in load_split(file, spec, split)]
            for split, file in files.items()
        }

    return run


@pytest.fixture
def refused(
    release: Callable[[str], Release], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Function (row, change, *options, sub="") -> the one line that prepare_<row>.py says of a changed copy.

    `change` is called with the copy's folder. Nothing may have been written.
    """

    def run(row: str, change: Callable[[Path], object], *options: str, sub: str = "") -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(release(row).root, copy)
        change(copy)
        filled = [option.replace("COPY", str(copy)) for option in options]
        command = [str(copy / sub), "--output", str(tmp_path / "out"), "--workers", "0", *filled]
        assert importlib.import_module(f"prepare_{row}").main(command) == 1
        assert not (tmp_path / "out").exists()
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return run


@pytest.fixture
def refused_edit(refused: Callable[..., str]) -> Callable[..., str]:
    """Function (row, file, old, new, *options) -> `refused`'s line about a release with a text replaced."""

    def run(row: str, name: str, old: str, new: str, *options: str) -> str:
        def change(root: Path) -> None:
            text = (root / name).read_text()
            assert old in text
            (root / name).write_text(text.replace(old, new, 1))

        return refused(row, change, *options)

    return run
