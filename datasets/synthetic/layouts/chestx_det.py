"""ChestX-Det: PNG files in train_data and test_data, and one JSON file each with three parallel lists per image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..film_record import Film
from .files import outlines, write_image, write_json


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; a finding with several components becomes several instances, as each has one polygon."""
    paths, lists = [], {"train": [], "test": []}
    for film in films:
        split = "test" if film.split == "test" else "train"
        name = f"{36000 + film.number}.png"
        paths.append(f"{split}_data/{name}")
        write_image(root / paths[-1], film.image)
        shapes = [(instance.name, outline) for instance in film.instances for outline in outlines(instance.mask)]
        lists[split].append(
            {
                "file_name": name,
                "syms": [title for title, _ in shapes],
                "boxes": [np.concatenate([np.min(shape, 0), np.max(shape, 0)]).tolist() for _, shape in shapes],
                "polygons": [shape for _, shape in shapes],
            }
        )
    for split, content in lists.items():
        write_json(root / f"ChestX_Det_{split}.json", content)
    return paths
