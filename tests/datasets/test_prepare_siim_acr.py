"""SIIM-ACR: from the drawn release to what the world drew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from fx_d2.data.masks import decode_masks

ROW = "siim_acr"


def test_labels_boxes_and_masks_are_what_was_drawn(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert sum(map(len, splits.values())) == 14 and set(splits) == {"train", "val", "test"}
    for film, record in [pair for rows in splits.values() for pair in rows]:
        assert record["labels"] == [film.labels["Pneumothorax"]]
        assert [tuple(box["bbox"]) for box in record["annotations"]] == [instance.box for instance in film.instances]
        assert np.array_equal(decode_masks(record["masks"], ROW)[..., 0], film.merged("Pneumothorax"))
        assert record["patient_id"] == film.digest("patient")


def test_the_folder_of_the_challenge_can_be_the_test_split(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW, "--test-folder", "--val-share", "0.2", "--patients", "image")
    assert all((film.split == "test") == (split == "test") for split, rows in splits.items() for film, _ in rows)
    assert len(splits["test"]) == 4 and len(splits["val"]) == 2


def anonymise(value: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for file in root.rglob("*.dcm"):
            dataset = pydicom.dcmread(file)
            dataset.PatientID = value
            dataset.save_as(file)

    return change


def test_patients_must_be_told_apart(refused: Callable[..., str]) -> None:
    assert "PatientID is blank: patients cannot be identified; --patients image" in refused(ROW, anonymise(""))
    assert "PatientID is the same for all images" in refused(ROW, anonymise("anonymous"))


def test_two_tables_must_be_chosen_from(refused: Callable[..., str]) -> None:
    def change(root: Path) -> None:
        (root / "stage_2_train.csv").write_bytes((root / "train-rle.csv").read_bytes())

    assert "train-rle.csv or stage_2_train.csv: 2 such files" in refused(ROW, change)
