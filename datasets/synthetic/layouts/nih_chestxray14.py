"""NIH ChestX-ray14: PNG files in folders images_001, ..., one table with a trailing empty column, two lists."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from ..film_record import Film
from .files import write_image

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
"""As released: unquoted commas inside column names, and a trailing comma."""


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; every fifth file has four channels, as some files of the release do."""
    paths, rows = [], []
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for film in films:
        name = f"{film.patient:08d}_{film.follow_up:03d}.png"
        paths.append(f"images_{1 + film.number // 6:03d}/images/{name}")
        pixels = film.image if film.number % 5 else cv2.cvtColor(film.image, cv2.COLOR_GRAY2BGRA)
        write_image(root / paths[-1], np.ascontiguousarray(pixels))
        found = "|".join(title for title, value in film.labels.items() if value == 1) or "No Finding"
        height, width = film.image.shape
        cells = (name, found, film.follow_up, film.patient, f"{film.age:03d}Y", film.sex, "PA", width, height)
        rows.append(",".join(map(str, cells)) + ",0.143,0.143,")
        lists["test_list.txt" if film.split == "test" else "train_val_list.txt"].append(name)
    (root / "Data_Entry_2017.csv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    for file, names in lists.items():
        (root / file).write_text("\n".join(names) + "\n", encoding="utf-8")
    return paths
