"""Drawn releases for the tests of the preparation scripts, each drawn once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fx_d2.data.table import BY_NAME

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
