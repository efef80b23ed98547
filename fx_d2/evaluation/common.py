"""What the evaluators share: gathering per-image results over processes, means, safe file writing."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from detectron2.utils import comm

Row = TypeVar("Row")


def gather_by_image(rows: dict[int, Row]) -> dict[int, Row] | None:
    """Per-image results of all processes, keyed and sorted by image id, every image once.

    Distributed samplers may repeat an image to fill the last batch: the first result of an image counts.
    A collective call: every process must make it. Returns None on all processes but the main one.
    """
    gathered = comm.gather(rows, dst=0)
    if not comm.is_main_process():
        return None
    merged: dict[int, Row] = {}
    for part in gathered:
        for image_id, row in part.items():
            merged.setdefault(image_id, row)
    return dict(sorted(merged.items()))


def nan_mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, when there is none."""
    kept = [v for v in values if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")


def log_undefined(logger: logging.Logger, dataset: str, metric: str, undefined: Sequence[str], reason: str) -> None:
    """Say which classes have no value of a metric; silent when all have one."""
    if undefined:
        logger.warning(
            "%s: %s undefined for %s (%s); left out of the mean", dataset, metric, ", ".join(undefined), reason
        )


def write_atomic(path: str | Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", text=True)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
