"""From files to a folder of pictures, tables, and a line of json for each film."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from fx_d2.data.film import Film
from fx_d2.demo.document import TABLES, document, table_rows
from fx_d2.demo.films import read_ahead
from fx_d2.predictor import FXPredictor, HeadPrediction, ImagePrediction
from fx_d2.structures import FXError
from fx_d2.visualization import draw_prediction

DOCUMENTS, PICTURES = "predictions.jsonl", "overlays"
"""Names in the output folder, beside those of TABLES."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file: `problem` is None where it was predicted, else a line that begins with the file."""

    path: Path
    problem: str | None = None


def check_output(output: str | Path) -> None:
    """FXError where a folder holds what would be written: results of an earlier call, or files of the user's own; or
    where it cannot be made or written."""
    folder = Path(output)
    if (folder / DOCUMENTS).exists():
        raise FXError(f"{folder} holds the predictions of an earlier call: give another folder, or remove it")
    for name in (PICTURES, *(name for name, _ in TABLES.values())):
        if (folder / name).exists():
            raise FXError(f"{folder} holds {name} already, which would be written over: give another folder")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise FXError(f"output {folder}: {there} is no folder that can be written")


def predict_files(
    predictor: FXPredictor,
    paths: Sequence[Path],
    output: str | Path,
    *,
    datasets: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    score_thresh: float = 0.3,
    pictures: bool = True,
) -> Iterator[Outcome]:
    """Predict files and write what was found, film by film; at most three batches are held in memory.

    Files, all in `output`: DOCUMENTS with one `document` a line, which also has "overlays" (dataset -> picture,
    relative to `output`); those of TABLES whose tasks were predicted; and in PICTURES, for each film and dataset,
    `<path below the films' common folder>.<dataset>.png`, a name that no other film can have. A film is whole in all
    of them before the next is begun. A file that cannot be read is left out, and its outcome says why.

    Args:
        predictor: the model.
        paths: the files.
        output: a folder that holds none of these files yet; made where it is not there.
        datasets: see `FXPredictor.stream`, as the two that follow.
        tasks: of these.
        score_thresh: boxes below are neither written nor drawn.
        pictures: whether PICTURES are drawn.

    Raises:
        FXError: see `check_output`; or an option asks for what the model has not.
    """
    options = {"datasets": datasets, "tasks": tasks, "score_thresh": score_thresh}
    predictor.wanted(datasets, tasks)  # a wrong option is refused before a film is read
    folder = Path(output)
    check_output(folder)
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else ""
    films = read_ahead(paths, predictor.read, 2 * predictor.batch_size)
    with _Files(folder) as files:
        while chunk := list(islice(films, predictor.batch_size)):
            readable = [film for _, film in chunk if isinstance(film, Film)]
            found = iter(predictor(readable, **options))
            for path, film in chunk:
                if isinstance(film, FXError):
                    yield Outcome(path, str(film))
                    continue
                prediction = next(found)
                folder.mkdir(parents=True, exist_ok=True)
                content = document(prediction, predictor, score_thresh)
                if pictures:
                    place = folder / PICTURES / os.path.relpath(path, common)
                    drawn = _draw(film, prediction, predictor.which, score_thresh, place)
                    content["overlays"] = {name: drawn[name].relative_to(folder).as_posix() for name in drawn}
                files.write(prediction, content)
                yield Outcome(path)


class _Files:
    """The files of an output folder, opened when the first film is written; whole lines are on the disk after each."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        self._open: dict[str, TextIO] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, prediction: ImagePrediction, content: Mapping[str, Any]) -> None:
        """One film."""
        for task, (name, columns) in TABLES.items():
            if name not in self._open and any(_has(head, task) for head in prediction.heads.values()):
                csv.writer(self._file(name)).writerow(("file", "dataset", *columns, "notice"))
        for task, row in table_rows(prediction):
            csv.writer(self._file(TABLES[task][0])).writerow(row)
        self._file(DOCUMENTS).write(json.dumps(content) + "\n")
        for file in self._open.values():
            file.flush()

    def _file(self, name: str) -> TextIO:
        if name not in self._open:
            # A file name that is no UTF-8 keeps its bytes.
            file = (self._folder / name).open("w", newline="", encoding="utf-8", errors="surrogateescape")
            self._open[name] = self._stack.enter_context(file)
        return self._open[name]


def _has(head: HeadPrediction, task: str) -> bool:
    """Whether a task was predicted."""
    return {"cls": head.labels, "loc": head.boxes, "seg": head.masks}[task] is not None


def _draw(film: Film, prediction: ImagePrediction, which: str, score_thresh: float, place: Path) -> dict[str, Path]:
    """Write one picture a dataset beside `place`, and return their paths."""
    place.parent.mkdir(parents=True, exist_ok=True)
    name = os.fsencode(place.name).decode("utf-8", "replace")
    written = {}
    for dataset, head in prediction.heads.items():
        boxes = "" if head.boxes is None else f"boxes with score >= {score_thresh:g}   "
        picture = draw_prediction(
            film.grey, head.spec, head.findings(), which=which, thresholds=head.thresholds, caption=f"{boxes}{name}"
        )
        written[dataset] = place.with_name(f"{place.name}.{dataset}.png")
        Image.fromarray(picture).save(written[dataset])
    return written
