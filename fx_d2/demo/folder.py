"""From image files to a folder with overlays, tables, and one line of JSON per image."""

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
"""Names in the output folder, in addition to those of TABLES."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one file: `problem` is None if it was predicted, else an error line that begins with the file."""

    path: Path
    problem: str | None = None


def check_output(output: str | Path) -> None:
    """FXError if an output folder already has files that would be overwritten, or cannot be created or written."""
    folder = Path(output)
    if (folder / DOCUMENTS).exists():
        raise FXError(f"{folder} already holds predictions of an earlier call: choose another folder, or remove it")
    for name in (PICTURES, *(name for name, _ in TABLES.values())):
        if (folder / name).exists():
            raise FXError(f"{folder} already holds {name}, which would be overwritten: choose another folder")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise FXError(f"output {folder}: {there} is not a writable folder")


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
    """Predict files and write the results image by image; at most three batches are held in memory.

    Files written to `output`: DOCUMENTS with one `document` per line, plus its "overlays" (dataset -> image file,
    relative to `output`); those of TABLES whose tasks were predicted; and in PICTURES, for each image and dataset,
    `<path relative to the images' common folder>.<dataset>.png`, which is unique. Each image is complete in all files
    before the next one starts. A file that cannot be loaded is skipped, and its outcome states why.

    Args:
        predictor: the model.
        paths: the files.
        output: a folder without any of these files; created if missing.
        datasets: see `FXPredictor.stream`, as for the next two.
        tasks: see there.
        score_thresh: boxes below are neither written nor drawn.
        pictures: whether to draw PICTURES.

    Raises:
        FXError: see `check_output`; or an option names something the model does not have.
    """
    options = {"datasets": datasets, "tasks": tasks, "score_thresh": score_thresh}
    predictor.wanted(datasets, tasks)  # refuse wrong options before loading an image
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
    """The files of an output folder, opened on first use and flushed after each image."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        self._open: dict[str, TextIO] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, prediction: ImagePrediction, content: Mapping[str, Any]) -> None:
        """Append one image's results."""
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
            # File names that are not valid UTF-8 keep their bytes.
            file = (self._folder / name).open("w", newline="", encoding="utf-8", errors="surrogateescape")
            self._open[name] = self._stack.enter_context(file)
        return self._open[name]


def _has(head: HeadPrediction, task: str) -> bool:
    """Whether a task was predicted."""
    return {"cls": head.labels, "loc": head.boxes, "seg": head.masks}[task] is not None


def _draw(film: Film, prediction: ImagePrediction, which: str, score_thresh: float, place: Path) -> dict[str, Path]:
    """Write one overlay per dataset, named after `place`; returns their paths."""
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
