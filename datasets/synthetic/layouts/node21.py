"""NODE21: 16-bit MHA files with 12-bit values, metadata.csv with one row per nodule, and tables of image origins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK

from ..film_record import Film
from .files import write_csv

SOURCES = ("jsrt", "padchest", "chestxray14", "openi")


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; a healthy image has one row of zeros. The first column has no name."""
    paths, rows = [], []
    origins: dict[str, list[tuple[str, str]]] = {"n": [], "c": []}
    images = root / "proccessed_data" / "images"
    images.mkdir(parents=True)
    for film in films:
        kind = "n" if film.instances else "c"
        name = f"{kind}{film.number:04d}"
        paths.append(f"proccessed_data/images/{name}.mha")
        stored = np.rint(film.image / 255 * 4095).astype(np.uint16)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(stored), str(root / paths[-1]))
        boxes = [(instance.box, 1) for instance in film.instances] or [((0, 0, 0, 0), 0)]
        rows += [(len(rows) + i, h, f"{name}.mha", label, w, x, y) for i, ((x, y, w, h), label) in enumerate(boxes)]
        origins[kind].append((name, SOURCES[film.number % 4]))
    header = ("", "height", "img_name", "label", "width", "x", "y")
    write_csv(root / "proccessed_data" / "metadata.csv", header, rows)
    for kind, prefix in (("n", ""), ("c", "non_nodule_")):
        table = root / "original_data" / f"{prefix}filenames_orig_and_new.csv"
        write_csv(table, ("node21_img_id", "orig_dataset"), origins[kind])
    return paths
