"""Finding image files, and prefetching them in threads."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fx_d2.data.film import Film
from fx_d2.data.metaimage import SUFFIXES as METAIMAGE
from fx_d2.structures import FXError

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".img", *METAIMAGE)
"""Files in a folder with one of these are images. DICOM files with other names are recognised by their magic bytes."""

THREADS = 4
"""Reader threads: decoding releases the GIL, and loading an image takes less time than the model."""


@dataclass(frozen=True)
class FoundFilms:
    """The files behind a list of inputs.

    Attributes:
        paths: each file once, in the order of the inputs; sorted within a folder or pattern.
        missing: input without files -> reason.
        others: suffix -> number of files in folders that are not images ("" = without suffix).
    """

    paths: tuple[Path, ...]
    missing: Mapping[str, str]
    others: Mapping[str, int]


def find_films(inputs: Sequence[str]) -> FoundFilms:
    """Find images from files, folders and patterns.

    Folders are searched recursively for names with one of SUFFIXES and for DICOM files of any name; hidden files and
    folders are skipped. Patterns ("scans/*.dcm", "**" for any depth) are expanded. Files that are named or matched by a
    pattern are accepted whatever their type.

    Args:
        inputs: paths and patterns.
    """
    paths: dict[Path, Path] = {}
    missing: dict[str, str] = {}
    others: Counter[str] = Counter()
    for text in inputs:
        path = Path(text)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        if not matches:
            missing[text] = "no such file or folder, and no match as a pattern"
        for match in matches:
            for file in _files_below(match) if match.is_dir() else [match]:
                if match.is_dir() and not _is_film(file):
                    others[file.suffix.lower()] += 1
                else:
                    paths.setdefault(file.resolve(), file)
    return FoundFilms(tuple(paths.values()), missing, dict(sorted(others.items())))


def read_ahead(
    paths: Iterable[Path], read: Callable[[Path], Film], ahead: int
) -> Iterator[tuple[Path, Film | FXError]]:
    """Each path with its image, or with the error of loading it, in order; at most `ahead` images are in memory."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[tuple[Path, Future[Film]]] = deque()
        for path in paths:
            waiting.append((path, pool.submit(read, path)))
            if len(waiting) >= ahead:
                yield _outcome(*waiting.popleft())
        while waiting:
            yield _outcome(*waiting.popleft())


def _outcome(path: Path, future: Future[Film]) -> tuple[Path, Film | FXError]:
    try:
        return path, future.result()
    except FXError as error:
        return path, error


def _files_below(folder: Path) -> Iterator[Path]:
    """Files of a folder and its subfolders, sorted; symlinks to folders are not followed, as they may form cycles."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _is_film(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
