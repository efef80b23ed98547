"""CheXpert: JPEG files by patient and study, and one table for each of train, valid and test."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..film_record import Film
from .files import report_cell, write_csv, write_image

CLASSES = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
FOLDERS = {"train": "train", "val": "valid", "test": "test"}


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; every fifth image is named lateral. The test table has paths and labels only."""
    paths = []
    tables: dict[str, list[tuple[object, ...]]] = {split: [] for split in FOLDERS}
    for film in films:
        side = "lateral" if film.number % 5 == 4 else "frontal"
        path = f"{FOLDERS[film.split]}/patient{film.patient:05d}/study{film.follow_up + 1}/view1_{side}.jpg"
        paths.append(path)
        write_image(root / path, film.image)
        sex = {"F": "Female", "M": "Male"}[film.sex]
        view = ("Frontal", ("AP", "PA")[film.number % 2]) if side == "frontal" else ("Lateral", "")
        cells = [report_cell(film.labels[name]) for name in CLASSES]
        told = () if film.split == "test" else (sex, film.age, *view)
        tables[film.split].append((f"CheXpert-v1.0/{path}", *told, *cells))
    for split, rows in tables.items():
        more = () if split == "test" else ("Sex", "Age", "Frontal/Lateral", "AP/PA")
        write_csv(root / f"{FOLDERS[split]}.csv", ("Path", *more, *CLASSES), rows)
    return paths
