"""Scores of single images: one compressed file of arrays for each model and split."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fx_d2.evaluation.common import write_atomic
from fx_d2.evaluation.subgroups import ImageInfo
from fx_d2.structures import TASKS, DatasetSpec, FXError

VERSION = 2
"""1: without the classes of the headline."""

_HEADLINE = ("reporting", "published")


def write_scores(
    path: str | Path, spec: DatasetSpec, images: Mapping[int, ImageInfo], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write one .npz file atomically, without pickles.

    Args:
        path: the file.
        spec: its name ("dataset") and class lists are stored, as "cls_classes" and so on.
        images: all images of the split, by sorted id; stored as "image_id" and the fields of ImageInfo, (N,) each.
        arrays: what the tasks' evaluators give (`TaskEvaluator.arrays`).
    """
    content: dict[str, np.ndarray] = {"version": np.array(VERSION), "image_id": np.array(list(images), np.int64)}
    for position, field in enumerate(ImageInfo._fields):
        content[field] = np.array([info[position] for info in images.values()], dtype=str)
    content |= {f"{task}_classes": np.array(spec.classes(task), dtype=str) for task in TASKS}
    content |= {key: np.array(getattr(spec, key), dtype=str) for key in _HEADLINE}
    content["dataset"] = np.array(spec.name)
    stream = io.BytesIO()
    # The stub takes every keyword for an option.
    np.savez_compressed(stream, **(content | dict(arrays)))  # type: ignore[arg-type]
    write_atomic(path, stream.getvalue())


def read_scores(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file of `write_scores`; FXError when it is missing or something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            content = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FXError(f"scores file {path} cannot be read ({error}); TEST.SAVE_SCORES True writes it") from None
    if int(content.get("version", 0)) != VERSION:
        raise FXError(f"scores file {path} is not of version {VERSION}: evaluate again to write it")
    return content


def scores_spec(arrays: Mapping[str, np.ndarray]) -> DatasetSpec:
    """The row of the table of datasets, as far as metrics need it, behind the content of a file of scores."""
    names = (*(f"{task}_classes" for task in TASKS), *_HEADLINE)
    row = {key: arrays[key].tolist() for key in names}
    return DatasetSpec.from_dict(row | {"name": str(arrays["dataset"])}, "scores")
