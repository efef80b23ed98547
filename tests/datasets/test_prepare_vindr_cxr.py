"""VinDr-CXR: from the drawn release to what the world drew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fx_d2.data.table import BY_NAME

ROW = "vindr_cxr"
CLASSES = BY_NAME[ROW].cls_classes


def labels(record: dict[str, Any]) -> dict[str, int]:
    return dict(zip(CLASSES, record["labels"], strict=True))


def test_any_reader_makes_a_finding_and_the_test_split_is_as_stated(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 10, "test": 4}
    assert all(labels(record) == film.labels for film, record in splits["test"])
    both = 0
    for film, record in splits["train"]:
        found = labels(record)
        normal = found.pop("No finding")
        assert found == {name: value for name, value in film.labels.items() if name != "No finding"}
        assert normal or not film.labels["No finding"]
        both += normal and any(found.values())
    # The third reader calls some sick films normal: "No finding" stands beside findings, as in the release.
    assert both > 0


def test_a_majority_can_be_asked_for(prepare: Callable[..., Any]) -> None:
    majority = prepare(ROW, "--readers", "majority")["train"]
    some = sum(sum(record["labels"]) for _, record in prepare(ROW)["train"])
    assert 0 < sum(sum(record["labels"]) for _, record in majority) < some
    for film, record in majority:
        if film.labels["No finding"]:
            assert labels(record) == film.labels


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("image_labels_train.csv", "Pleural effusion", "PE", "no column 'Pleural effusion'"),
        ("image_labels_test.csv", ",1\n", ",2\n", "column 'No finding': '2' is not 0 or 1"),
        ("image_labels_test.csv", "\n", "\nlost," + "0," * 27 + "1\n", "test/lost.dicom: image file cannot be read"),
    ],
)
def test_faulty_tables_are_refused(
    refused_edit: Callable[..., str], name: str, old: str, new: str, message: str
) -> None:
    assert message in refused_edit(ROW, f"annotations/{name}", old, new)
