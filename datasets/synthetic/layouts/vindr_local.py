"""VinDr-CXR boxes: three readers annotate each finding in train; test has their consensus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..film_record import Film, Instance
from .files import write_csv
from .vindr_cxr import READERS, read, write_images

CORNERS = ("x_min", "y_min", "x_max", "y_max")
RARE = {"fracture": "Rib fracture"}
"""Kinds with a class name in the release beyond the 14 of the row."""


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; readers differ by up to one pixel, and the second and third miss findings as in vindr_cxr."""
    paths, train, test = [], [], []
    for film, path in write_images(root, films):
        paths.append(path)
        name = Path(path).stem
        if film.split == "test":
            test += [(name, *cells) for cells in _rows(film, {_name(instance) for instance in film.instances}, None)]
            continue
        for number, reader in enumerate(READERS):
            seen = read({_name(instance) for instance in film.instances}, number, film.number)
            train += [(name, reader, *cells) for cells in _rows(film, seen, film.rng(reader))]
    write_csv(root / "annotations" / "annotations_train.csv", ("image_id", "rad_id", "class_name", *CORNERS), train)
    write_csv(root / "annotations" / "annotations_test.csv", ("image_id", "class_name", *CORNERS), test)
    return paths


def _rows(film: Film, seen: set[str], hand: np.random.Generator | None) -> list[tuple[object, ...]]:
    """Class and corners of each box of one reader; "No finding" without corners if there are none."""
    rows: list[tuple[object, ...]] = []
    for instance in film.instances:
        if _name(instance) in seen:
            x, y, width, height = instance.box
            corners = np.array([x, y, x + width, y + height], float)
            if hand is not None:
                corners += hand.uniform(-1, 1, 4)
            limits = film.image.shape[::-1] * 2
            rows.append((_name(instance), *np.clip(corners, 0, limits).round(2).tolist()))
    return rows or [("No finding", None, None, None, None)]


def _name(instance: Instance) -> str:
    return RARE.get(instance.kind, instance.name)
