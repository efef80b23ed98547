"""MIMIC-CXR-JPG: from the drawn release to what the world drew."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fx_d2.data.table import BY_NAME

ROW = "mimic_cxr"


def test_tables_are_joined_and_labels_go_by_name(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 8, "val": 2, "test": 4}
    values = set()
    for split, rows in splits.items():
        for film, record in rows:
            assert film.split == split
            found = dict(zip(BY_NAME[ROW].cls_classes, record["labels"], strict=True))
            assert found == film.labels
            values |= set(found.values())
            assert (record["patient_id"], record["study_id"]) == (f"1{film.patient:07d}", f"5{film.number:07d}")
            assert record["meta"] == {"view": "LATERAL" if film.number % 5 == 4 else ("AP", "PA")[film.number % 2]}
    assert values == {1, 0, -1, None}


def test_frontal_films_alone(prepare: Callable[..., Any]) -> None:
    assert sum(map(len, prepare(ROW, "--views", "frontal").values())) == 12


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        file = root / f"mimic-cxr-2.0.0-{name}.csv.gz"
        text = gzip.decompress(file.read_bytes()).decode()
        assert old in text
        file.write_bytes(gzip.compress(text.replace(old, new, 1).encode()))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("chexpert", "Atelectasis", "Collapse"), "no column 'Atelectasis'"),
        (edit("chexpert", "50000003", "50000002"), "study 50000002 occurs twice"),
        (edit("chexpert", "50000003", "59999999"), "its study has no row in the table of labels"),
        (edit("split", "validate", "valid"), "is of split 'valid'"),
        (edit("metadata", "dicom_id", "image"), "no column 'dicom_id'"),
        (lambda root: (root / "mimic-cxr-2.0.0-split.csv.gz").unlink(), "0 files mimic-cxr-<version>-split.csv"),
    ],
)
def test_faulty_tables_are_refused(refused: Callable[..., str], change: Callable[[Path], object], message: str) -> None:
    assert message in refused(ROW, change)
