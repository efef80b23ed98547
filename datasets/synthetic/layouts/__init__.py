"""The public releases' layouts: one module a row of the table, named as the row, that writes drawn films as the release
has them on disk: folders, file names, headers of tables, image formats.

A module has `write(root, films)`: it writes the films into the empty folder `root` and returns the path of each film's
image relative to it, in the films' order. Films come one after the other and are not kept.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from ..film_record import Film

Writer = Callable[[Path, Iterable[Film]], list[str]]


def has_layout(name: str) -> bool:
    """Whether a row has a module here."""
    return (Path(__file__).parent / f"{name}.py").is_file()


def writer(name: str) -> Writer:
    """The writer of a row that has a layout."""
    return importlib.import_module(f"{__name__}.{name}").write
