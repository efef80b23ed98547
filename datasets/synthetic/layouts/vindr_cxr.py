"""VinDr-CXR: .dicom files in folders train and test, and tables of image labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..film_record import Film
from .files import uid, write_csv, write_dicom

CLASSES = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
    "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding",
)  # fmt: skip
"""Columns of the image label tables: 22 local findings, then 6 image-level labels."""

READERS = ("R8", "R9", "R10")


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; the second reader misses every other finding, the third calls every other sick image normal."""
    paths, train, test = [], [], []
    for film, path in write_images(root, films):
        paths.append(path)
        truth = {name for name, value in film.labels.items() if value == 1}
        name = Path(path).stem
        if film.split == "test":
            test.append((name, *_cells(truth)))
            continue
        for number, reader in enumerate(READERS):
            train.append((name, reader, *_cells(read(truth, number, film.number))))
    write_csv(root / "annotations" / "image_labels_train.csv", ("image_id", "rad_id", *CLASSES), train)
    write_csv(root / "annotations" / "image_labels_test.csv", ("image_id", *CLASSES), test)
    return paths


def read(truth: set[str], reader: int, film: int) -> set[str]:
    """The findings that one of three readers reports: the first reports all, the others some."""
    if reader == 1:
        truth = set(sorted(truth)[film % 2 :: 2])
    if reader == 2 and film % 2:
        truth = set()
    return truth or {"No finding"}


def write_images(root: Path, films: Iterable[Film]) -> Iterator[tuple[Film, str]]:
    """Write .dicom files of 12 and 14 bits, MONOCHROME1 and 2, with and without window; yields images and paths."""
    for film in films:
        name = film.digest()
        path = f"{'test' if film.split == 'test' else 'train'}/{name}.dicom"
        write_dicom(
            root / path,
            film.image,
            sop_uid=uid("image", name),
            sex=film.sex,
            age=film.age,
            bits=14 if film.number % 2 else 12,
            inverted=film.number % 3 == 0,
            window=film.number % 4 > 0,
        )
        yield film, path


def _cells(positive: set[str]) -> list[int]:
    return [int(name in positive) for name in CLASSES]
