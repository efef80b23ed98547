"""Readers for the files of public releases and folders: tables, JSON files, and the location of each image.

Byte order marks, spaces around cells and headers, and gzip are accepted; every problem is a one-line FXError.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fx_d2.structures import FXError

_LONGEST_CELL = 2**26
"""Characters; run-length codes of large masks exceed the default limit of csv."""


def read_rows(path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Iterate over the rows of a csv (or csv.gz): the named columns, stripped.

    Args:
        path: the table.
        columns: required column names.
        optional: optional column names; "" if the header does not have them.

    Raises:
        FXError: the file is missing, empty, damaged or not UTF-8, a column is missing or duplicated, or the number of
            cells in a row differs from the header; the message names file and row.
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
                    raise FXError(f"{path}: row {number} has {len(cells)} cells, but the header has {len(header)}")
                yield {name: "" if place is None else cells[place].strip() for name, place in places.items()}
    except FileNotFoundError:
        raise FXError(f"{path}: not found; datasets/README.md lists the required files") from None
    except UnicodeDecodeError as error:
        raise FXError(f"{path}: not UTF-8 text after row {number} ({error.reason}): save it as UTF-8") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise FXError(f"{path}: cannot be read as a table after row {number} ({error})") from None
    if number == 1:
        raise FXError(f"{path}: has no rows")


def _places(
    path: Path, header: Sequence[str], columns: Sequence[str], optional: Sequence[str]
) -> dict[str, int | None]:
    """The index of each requested column, None for an optional column that is absent."""
    if len(header) == 1 and any(sign in header[0] for sign in ";\t"):
        raise FXError(f"{path}: cells must be separated by commas: {header[0]!r}")
    for name in (*columns, *optional):
        if header.count(name) > 1:
            raise FXError(f"{path}: column {name!r} occurs twice")
        if name in columns and name not in header:
            raise FXError(f"{path}: no column {name!r}; it has {header}")
    return {name: header.index(name) if name in header else None for name in (*columns, *optional)}


def read_json(path: Path, kind: type[dict] | type[list]) -> Any:
    """Load a JSON file; FXError if it is missing or broken, or not an object (dict) or list as specified by `kind`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FXError(f"{path}: not found; datasets/README.md lists the required files") from None
    except (OSError, ValueError) as error:
        raise FXError(f"{path}: not readable json ({error})") from None
    if not isinstance(content, kind):
        raise FXError(f"{path}: must hold {'an object' if kind is dict else 'a list'}, not {type(content).__name__}")
    return content


def find_files(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The files in a folder, recursively, sorted; with `names`, only files with these names.

    Symbolic links to folders are followed, as large releases are often spread over several disks.
    """
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(top, name) for top, _, files in walk for name in files if not names or name in names)


def find_file(root: Path, names: Sequence[str]) -> Path:
    """The file with one of these names in a folder, searched recursively; FXError if there is none or several."""
    found = find_files(root, names)
    if len(found) != 1:
        problem = f"{len(found)} such files, {found[0]} and {found[1]}" if found else "not found in the folder"
        raise FXError(f"{root}: {' or '.join(names)}: {problem}; datasets/README.md lists the required files")
    return found[0]


def index_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files in a folder, recursively, by file name without extension.

    Args:
        folder: the folder; hidden files are ignored.
        endings: extensions such as ".png", in lower case. The first match is removed from the name; files without a
            match are ignored. "" matches every file.

    Raises:
        FXError: no such folder, no matching files, or two files with the same name.
    """
    if not folder.is_dir():
        raise FXError(f"{folder}: no such folder; datasets/README.md lists the required files")
    files: dict[str, Path] = {}
    for path in find_files(folder):
        ending = next((ending for ending in endings if path.name.lower().endswith(ending)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        name = path.name[: len(path.name) - len(ending)]
        if name in files:
            raise FXError(f"{folder}: {files[name]} and {path} are two files of the same image; remove one")
        files[name] = path
    if not files:
        raise FXError(f"{folder}: contains no {' or '.join(endings)} files")
    return files
