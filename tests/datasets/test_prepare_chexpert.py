"""CheXpert: from the drawn release to what the world drew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fx_d2.data.table import BY_NAME

ROW = "chexpert"


def test_labels_as_they_stand_in_official_splits(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 8, "val": 2, "test": 4}
    values = set()
    for split, rows in splits.items():
        for film, record in rows:
            assert film.split == split
            found = dict(zip(BY_NAME[ROW].cls_classes, record["labels"], strict=True))
            assert found == film.labels
            values |= set(found.values())
            patient = f"patient{film.patient:05d}"
            assert (record["patient_id"], record["study_id"]) == (patient, f"{patient}/study{film.follow_up + 1}")
            lateral = film.number % 5 == 4
            told = {"sex": film.sex, "age": film.age} if split != "test" else {}
            view = "lateral" if lateral else ("AP", "PA")[film.number % 2]
            assert record["meta"] == told | ({"view": view} if split != "test" or lateral else {})
    assert values == {1, 0, -1, None}


def test_views_can_be_chosen(prepare: Callable[..., Any]) -> None:
    frontal = prepare(ROW, "--views", "frontal")
    assert all(film.number % 5 != 4 for rows in frontal.values() for film, _ in rows)
    assert sum(map(len, frontal.values())) == 12


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("train.csv", "Edema", "Oedema", "no column 'Edema'"),
        ("train.csv", "patient00001/study1", "patient1", "is not <split>/patient<n>/study<n>"),
        ("valid.csv", ",0.0", ",2.0", "'2.0' is not 1, 0, -1 or blank"),
        ("train.csv", "patient00002", "patient00001", "occurs twice"),
    ],
)
def test_faulty_tables_are_refused(
    refused_edit: Callable[..., str], name: str, old: str, new: str, message: str
) -> None:
    assert message in refused_edit(ROW, name, old, new)


def test_columns_may_stand_in_any_order(release: Callable[[str], Any], prepare: Callable[..., Any]) -> None:
    """Labels go by name: the same table with its columns turned around gives the same labels."""
    table = release(ROW).root / "valid.csv"
    before = table.read_text()
    wanted = [record["labels"] for _, record in prepare(ROW)["val"]]
    try:
        table.write_text("\n".join(",".join(line.split(",")[::-1]) for line in before.splitlines()) + "\n")
        assert [record["labels"] for _, record in prepare(ROW)["val"]] == wanted
    finally:
        table.write_text(before)
