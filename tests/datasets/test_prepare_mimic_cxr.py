"""MIMIC-CXR-JPG: from the drawn release to what the world drew."""

from __future__ import annotations

import gzip
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fx_d2.data.annotations import load_spec, load_split
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


def test_a_study_without_labels_is_not_annotated(
    release: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The release has some; the images stay, so that counts and splits are the published ones."""
    shutil.copytree(release(ROW).root, tmp_path / "copy")
    edit("chexpert", "50000003", "59999999")(tmp_path / "copy")
    command = [str(tmp_path / "copy"), "--output", str(tmp_path / "out"), "--workers", "0"]
    assert importlib.import_module("prepare_mimic_cxr").main(command) == 0
    folder = tmp_path / "out" / ROW
    assert json.loads((folder / "train.json").read_text())["info"]["release"] == "2.0.0"
    records = load_split(folder / "train.json", load_spec(folder), "train")
    assert [r["study_id"] for r in records if not r["annotated"]["cls"]] == ["50000003"] and len(records) == 8
    assert "1 studies have no row in the label table: their 1 images are not annotated" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("chexpert", "Atelectasis", "Collapse"), "no column 'Atelectasis'"),
        (edit("chexpert", "50000003", "50000002"), "study 50000002 occurs twice"),
        (edit("split", "validate", "valid"), "has split 'valid'"),
        (edit("metadata", "dicom_id", "image"), "no column 'dicom_id'"),
        (lambda root: (root / "mimic-cxr-2.0.0-split.csv.gz").unlink(), "0 files mimic-cxr-<version>-split.csv"),
    ],
)
def test_faulty_tables_are_refused(refused: Callable[..., str], change: Callable[[Path], object], message: str) -> None:
    assert message in refused(ROW, change)
