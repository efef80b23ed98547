"""ChestX-ray14: from the drawn release to what the world drew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fx_d2.data.table import BY_NAME

ROW = "nih_chestxray14"


def test_labels_patients_and_the_official_test_list(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 9, "val": 1, "test": 4}
    assert all(film.split == "test" for film, _ in splits["test"])
    for film, record in [pair for rows in splits.values() for pair in rows]:
        found = dict(zip(BY_NAME[ROW].cls_classes, record["labels"], strict=True))
        assert found == {name: int(value == 1) for name, value in film.labels.items()}
        assert record["patient_id"] == str(film.patient)
        assert record["meta"] == {"sex": film.sex, "age": film.age, "view": "PA"}


def test_validation_is_drawn_by_patient(prepare: Callable[..., Any]) -> None:
    assert {split: len(rows) for split, rows in prepare(ROW, "--val-share", "0.3").items()} == {
        "train": 7,
        "val": 3,
        "test": 4,
    }


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("Data_Entry_2017.csv", "Finding Labels", "Findings", "no column 'Finding Labels'"),
        ("Data_Entry_2017.csv", "No Finding", "No Finding|Mass", "'No Finding|Mass' must be"),
        ("Data_Entry_2017.csv", "No Finding", "Cough", "'Cough' must be"),
        ("Data_Entry_2017.csv", "00000001_000.png", "00000099_000.png", "'00000099_000.png' is neither in train_val"),
        ("Data_Entry_2017.csv", "00000002_000.png", "00000001_000.png", "'00000001_000.png' occurs twice"),
        ("test_list.txt", "\n", "\n00000077_000.png\n", "'00000077_000.png' in the lists has no row (1"),
        ("test_list.txt", "\n", "\n00000001_000.png\n", "is in train_val_list.txt and in test_list.txt"),
    ],
)
def test_faulty_tables_are_refused(
    refused_edit: Callable[..., str], name: str, old: str, new: str, message: str
) -> None:
    assert message in refused_edit(ROW, name, old, new)


def test_windows_files_with_a_byte_order_mark_are_read(
    release: Callable[[str], Any], prepare: Callable[..., Any]
) -> None:
    table = release(ROW).root / "Data_Entry_2017.csv"
    before = table.read_bytes()
    try:
        table.write_bytes(b"\xef\xbb\xbf" + before.replace(b"\n", b"\r\n"))
        assert len(prepare(ROW)["test"]) == 4
    finally:
        table.write_bytes(before)
