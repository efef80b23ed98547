"""File layouts of the public releases: folders, file names, table headers, image formats. One module per dataset row,
with the same name, writes synthetic images in the layout of the release.

A module has `write(root, films)`: it writes the images to the empty folder `root` and returns their paths relative to
it, in order. Images are consumed one at a time and not kept.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from ..film_record import Film

Writer = Callable[[Path, Iterable[Film]], list[str]]


def has_layout(name: str) -> bool:
    """Whether a dataset has a layout module."""
    return (Path(__file__).parent / f"{name}.py").is_file()


def writer(name: str) -> Writer:
    """The writer of a dataset with a layout."""
    return importlib.import_module(f"{__name__}.{name}").write
