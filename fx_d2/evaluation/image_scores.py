"""Per-image scores: one compressed .npz file per model and split."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fx_d2.evaluation.subgroups import ImageInfo
from fx_d2.files import write_atomic
from fx_d2.structures import TASKS, DatasetSpec, FXError

VERSION = 2
"""Version 1 lacked the classes of the headline metrics (`reporting`, `published`)."""

_HEADLINE = ("reporting", "published")


def write_scores(
    path: str | Path, spec: DatasetSpec, images: Mapping[int, ImageInfo], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a .npz file atomically, without pickled objects.

    Args:
        path: the file.
        spec: dataset row (`DatasetSpec`), stored as its name ("dataset") and class lists ("cls_classes", ...).
        images: all images of the split, by sorted id; stored as "image_id" and the fields of ImageInfo, (N,) each.
        arrays: arrays of the evaluators (`TaskEvaluator.arrays`).
    """
    content: dict[str, np.ndarray] = {"version": np.array(VERSION), "image_id": np.array(list(images), np.int64)}
    for position, field in enumerate(ImageInfo._fields):
        content[field] = np.array([info[position] for info in images.values()], dtype=str)
    content |= {f"{task}_classes": np.array(spec.classes(task), dtype=str) for task in TASKS}
    content |= {key: np.array(getattr(spec, key), dtype=str) for key in _HEADLINE}
    content["dataset"] = np.array(spec.name)
    stream = io.BytesIO()
    # The type stub takes keywords for options of the function.
    np.savez_compressed(stream, **(content | dict(arrays)))  # type: ignore[arg-type]
    write_atomic(path, stream.getvalue())


def read_scores(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file of `write_scores`; raises FXError if it is missing or not such a file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            content = {key: stored[key] for key in stored.files}
    # TypeError: a .npy file, which is no context manager.
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise FXError(f"scores file {path} cannot be read ({error}); TEST.SAVE_SCORES True writes it") from None
    if int(content.get("version", 0)) != VERSION:
        raise FXError(f"scores file {path} does not have version {VERSION}: evaluate again to write it")
    return content


def scores_spec(arrays: Mapping[str, np.ndarray]) -> DatasetSpec:
    """The dataset row (`DatasetSpec`) of a scores file, restored as far as metrics need it."""
    names = (*(f"{task}_classes" for task in TASKS), *_HEADLINE)
    row = {key: arrays[key].tolist() for key in names}
    return DatasetSpec.from_dict(row | {"name": str(arrays["dataset"])}, "scores")
