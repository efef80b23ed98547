"""MIMIC-CXR-JPG: JPEG files by subject and study, and gzipped tables of labels, splits and views."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

from ..film_record import Film
from .chexpert import CLASSES
from .files import report_cell, write_csv, write_image

SPLIT = {"train": "train", "val": "validate", "test": "test"}
VERSION = "mimic-cxr-2.0.0"


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; label columns are in alphabetical order, one row per study; every fifth image is lateral."""
    paths, labels, splits, views = [], [], [], []
    for film in films:
        subject, study, digest = f"1{film.patient:07d}", f"5{film.number:07d}", film.digest()
        image = "-".join(digest[i : i + 8] for i in range(0, 32, 8))
        paths.append(f"files/p{subject[:2]}/p{subject}/s{study}/{image}.jpg")
        write_image(root / paths[-1], film.image)
        labels.append((subject, study, *(report_cell(film.labels[name]) for name in sorted(CLASSES))))
        splits.append((image, study, subject, SPLIT[film.split]))
        view = "LATERAL" if film.number % 5 == 4 else ("AP", "PA")[film.number % 2]
        views.append((image, subject, study, "CHEST (PA AND LAT)", view, *film.image.shape))
    tables = {
        "chexpert": (("subject_id", "study_id", *sorted(CLASSES)), labels),
        "split": (("dicom_id", "study_id", "subject_id", "split"), splits),
        "metadata": (
            ("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows")
            + ("Columns",),
            views,
        ),
    }
    for name, (header, rows) in tables.items():
        table = root / f"{VERSION}-{name}.csv"
        write_csv(table, header, rows)
        # No timestamp in the gzip file: same content, same bytes.
        table.with_suffix(".csv.gz").write_bytes(gzip.compress(table.read_bytes(), mtime=0))
        table.unlink()
    return paths
