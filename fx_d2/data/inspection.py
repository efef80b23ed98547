"""Decode every image of a split to find what annotations do not show: broken files, bit depths, blank images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fx_d2.data.cache import read_record
from fx_d2.data.fingerprint import COARSE, film_print
from fx_d2.data.image_io import describe_file
from fx_d2.data.masks import image_masks
from fx_d2.data.parallel import map_images
from fx_d2.structures import FXError


@dataclass(frozen=True)
class Inspection:
    """Results of inspecting a split.

    Attributes:
        faults: one line per unusable image, naming the file.
        kinds: file counts by format and bit depth, such as "PNG, 16 bits".
        blank: files of constant images.
        prints: int8 (images, D), coarse fingerprints in the order of the split; zeros for unreadable images.
    """

    faults: list[str]
    kinds: Counter[str]
    blank: list[str]
    prints: np.ndarray


def inspect_split(dicts: Sequence[Mapping[str, Any]], *, workers: int = 0, name: str = "") -> Inspection:
    """Decode all images and mask files of a split.

    Args:
        dicts: Detectron2 dicts of `annotations.load_split`.
        workers: worker processes; 0 = main process only.
        name: name of the split, for the progress bar.
    """
    faults: list[str] = []
    blank: list[str] = []
    kinds: Counter[str] = Counter()
    prints = np.zeros((len(dicts), COARSE[0] ** 2), np.int8)
    for i, (kind, print_, problem) in enumerate(map_images(_inspect, dicts, workers=workers, name=name)):
        kinds[kind] += 1
        if problem:
            faults.append(problem)
        if print_ is not None:
            prints[i] = print_
            if not print_.any():
                blank.append(dicts[i]["file_name"])
    return Inspection(faults, kinds, blank, prints)


def _inspect(record: Mapping[str, Any]) -> tuple[str, np.ndarray | None, str]:
    """Format and bit depth of the file, its fingerprint (None: unreadable), and an error message or ""."""
    kind, print_ = "unreadable", None
    try:
        kind = describe_file(Path(record["file_name"]))
        print_ = film_print(read_record(record))
        image_masks(record)
    except FXError as error:
        return kind if print_ is not None else "unreadable", print_, str(error)
    return kind, print_, ""
