"""Which files are meant, and reading them ahead of the model."""

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
"""By which a file in a folder counts as a film. DICOM files of other names are known by their mark."""

THREADS = 4
"""That read: decoding lets other threads run, and a film takes less time than the model does."""


@dataclass(frozen=True)
class FoundFilms:
    """What inputs stand for.

    Attributes:
        paths: each file once, in the order of the inputs, within a folder or pattern sorted.
        missing: inputs that name nothing, and why.
        others: suffix -> number of files in folders that are no films ("" = without suffix).
    """

    paths: tuple[Path, ...]
    missing: Mapping[str, str]
    others: Mapping[str, int]


def find_films(inputs: Sequence[str], without: Path | None = None) -> FoundFilms:
    """The films behind files, folders and patterns.

    A folder is searched with all folders below it, for names with one of SUFFIXES and for DICOM files of any name;
    hidden files and folders are passed over. A pattern ("scans/*.dcm", "**" for any depth) stands for what it matches.
    A file that is named, or matched, is taken whatever it is.

    Args:
        inputs: paths and patterns.
        without: a folder to leave out: the output, which may lie below an input.
    """
    paths: dict[Path, Path] = {}
    missing: dict[str, str] = {}
    others: Counter[str] = Counter()
    for text in inputs:
        path = Path(text)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        if not matches:
            missing[text] = "no such file or folder, and no file matches"
        for match in matches:
            for file in _files_below(match, without) if match.is_dir() else [match]:
                if match.is_dir() and not _is_film(file):
                    others[file.suffix.lower()] += 1
                else:
                    paths.setdefault(file.resolve(), file)
    return FoundFilms(tuple(paths.values()), missing, dict(sorted(others.items())))


def read_ahead(
    paths: Iterable[Path], read: Callable[[Path], Film], ahead: int
) -> Iterator[tuple[Path, Film | FXError]]:
    """Each path with its film, or with what is wrong with it, in order; at most `ahead` films wait in memory."""
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


def _files_below(folder: Path, without: Path | None) -> Iterator[Path]:
    """Files of a folder and of those below, sorted; links to folders are not followed, for they may lead in circles."""
    for root, folders, files in os.walk(folder):
        below = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in below if without is None or Path(root, name).resolve() != without.resolve()]
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _is_film(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
