"""Readers of what public releases and folders hold beside images: tables, json files, and where each image lies.

Byte order marks, blanks around cells and headers, and gzip are harmless; every fault is an FXError of one line.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fx_d2.structures import FXError

_LONGEST_CELL = 2**26
"""Characters: run-length codes of large masks pass csv's own limit."""


def read_rows(path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """The rows of a csv (or csv.gz), one after the other: the named columns, stripped.

    Args:
        path: the table.
        columns: names that its header must have.
        optional: names that are given as "" where the header lacks them.

    Raises:
        FXError: when it is missing, empty or not UTF-8, a column is missing or there twice, or a row has another number
            of cells than the header; naming file and line.
    """
    csv.field_size_limit(_LONGEST_CELL)
    opener = gzip.open if path.suffix == ".gz" else open
    number = 1
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = [cell.strip() for cell in next(lines, [])]
            places = _places(path, header, columns, optional)
            for number, cells in enumerate(lines, start=2):
                if len(cells) != len(header):
                    if not cells:
                        continue
                    raise FXError(f"{path}: row {number} has {len(cells)} cells, the header {len(header)}")
                yield {name: "" if place is None else cells[place].strip() for name, place in places.items()}
    except FileNotFoundError:
        raise FXError(f"{path}: not found; datasets/README.md shows what is needed") from None
    except UnicodeDecodeError as error:
        raise FXError(f"{path}: not UTF-8 text after row {number} ({error.reason}): save it as UTF-8") from None
    except (OSError, EOFError, csv.Error) as error:
        raise FXError(f"{path}: cannot be read as a table after row {number} ({error})") from None
    if number == 1:
        raise FXError(f"{path}: has no rows")


def _places(
    path: Path, header: Sequence[str], columns: Sequence[str], optional: Sequence[str]
) -> dict[str, int | None]:
    """Where each wanted column stands, None for an optional one that is not there."""
    if len(header) == 1 and any(sign in header[0] for sign in ";\t"):
        raise FXError(f"{path}: its cells must be separated by commas, as in a csv: {header[0]!r}")
    for name in (*columns, *optional):
        if header.count(name) > 1:
            raise FXError(f"{path}: column {name!r} occurs twice")
        if name in columns and name not in header:
            raise FXError(f"{path}: no column {name!r}; it has {header}")
    return {name: header.index(name) if name in header else None for name in (*columns, *optional)}


def read_json(path: Path, kind: type[dict] | type[list]) -> Any:
    """The content of a json file; FXError when it is missing, broken, or not an object (dict) or list as stated."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FXError(f"{path}: not found; datasets/README.md shows what is needed") from None
    except (OSError, ValueError) as error:
        raise FXError(f"{path}: not readable json ({error})") from None
    if not isinstance(content, kind):
        raise FXError(f"{path}: must hold {'an object' if kind is dict else 'a list'}, not {type(content).__name__}")
    return content


def find_files(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The files of a folder, at any depth, sorted; with `names`, those called so.

    Folders behind links are looked through as well: large releases are often spread over disks.
    """
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(top, name) for top, _, files in walk for name in files if not names or name in names)


def find_file(root: Path, names: Sequence[str]) -> Path:
    """The file of one of these names in a folder, at any depth; FXError when there is none, or several."""
    found = find_files(root, names)
    if len(found) != 1:
        problem = f"{len(found)} files of the name, {found[0]} and {found[1]}" if found else "not found in the folder"
        raise FXError(f"{root}: {' or '.join(names)}: {problem}; datasets/README.md shows what is needed")
    return found[0]


def index_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder, at any depth, by their name without ending.

    Args:
        folder: where to look; hidden files are left out.
        endings: such as ".png", in lower case; the first that fits is taken off, files that none fits are left out.
            "" fits all.

    Raises:
        FXError: no such folder, no such file, or two of one name.
    """
    if not folder.is_dir():
        raise FXError(f"{folder}: no such folder; datasets/README.md shows what is needed")
    files: dict[str, Path] = {}
    for path in find_files(folder):
        ending = next((ending for ending in endings if path.name.lower().endswith(ending)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        name = path.name[: len(path.name) - len(ending)]
        if name in files:
            raise FXError(f"{folder}: {files[name]} and {path} are two files of one image; remove one")
        files[name] = path
    if not files:
        raise FXError(f"{folder}: holds no file {' or '.join(endings)}")
    return files
