"""VinDr-CXR local findings: from three readers' boxes to what the world drew."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fx_d2.data.annotations import load_split
from fx_d2.data.table import BY_NAME
from fx_d2.structures import SPLITS

ROW = "vindr_local"
CLASSES = BY_NAME[ROW].loc_classes


def boxes(record: dict[str, Any], name: str) -> np.ndarray:
    found = [box["bbox"] for box in record["annotations"] if CLASSES[box["category_id"]] == name]
    return np.array(sorted(found)).reshape(-1, 4)


def drawn(film: Any, name: str) -> np.ndarray:
    return np.array(sorted(i.box for i in film.instances if i.name == name), float).reshape(-1, 4)


def test_fused_boxes_are_near_those_drawn_and_test_is_as_stated(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 10, "test": 4}
    for film, record in splits["test"]:
        assert record["annotated"]["loc"]
        for name in CLASSES:
            assert np.array_equal(boxes(record, name), drawn(film, name))
    compared = 0
    for film, record in splits["train"]:
        for name in CLASSES:
            expected, found = drawn(film, name), boxes(record, name)
            assert bool(len(found)) == bool(len(expected))
            # Small boxes drawn by unsteady hands may overlap too little to be fused.
            if len(expected) == 1 and expected[0, 2:].min() > 12:
                compared += 1
                assert len(found) == 1 and np.abs(found - expected).max() <= 2
    assert compared >= 5


def test_all_readers_boxes_can_be_kept_or_agreement_be_asked_for(prepare: Callable[..., Any]) -> None:
    def count(*options: str) -> int:
        return sum(len(record["annotations"]) for _, record in prepare(ROW, *options)["train"])

    agreed, fused, union = count("--min-readers", "2"), count(), count("--fusion", "union")
    assert 0 < agreed < fused < union


def test_rare_findings_are_other_lesions_or_left_out_or_classes_of_their_own(prepare: Callable[..., Any]) -> None:
    def names(classes: tuple[str, ...], *options: str, name: str = "") -> set[str]:
        rows = [pair for pairs in prepare(ROW, *options, name=name).values() for pair in pairs]
        kinds = {i.kind for film, _ in rows for i in film.instances if "hernia" not in film.kinds}
        assert "fracture" in kinds
        broken = [record for film, record in rows if "fracture" in film.kinds and "hernia" not in film.kinds]
        return {classes[box["category_id"]] for record in broken for box in record["annotations"]}

    every = importlib.import_module("prepare_vindr_local").ALL_SPEC.loc_classes
    assert len(every) == 22 and set(CLASSES) < set(every)
    assert "Other lesion" in names(CLASSES)
    assert "Other lesion" not in names(CLASSES, "--rare", "drop")
    own = names(every, "--classes", "22", name="vindr_local22")
    assert "Rib fracture" in own and "Other lesion" not in own


def test_the_competitions_table_has_no_splits(release: Callable[[str], Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release(ROW).root, copy)
    rows = [row.split(",") for row in (copy / "annotations" / "annotations_train.csv").read_text().splitlines()]
    table = [",".join([image, name, "class_id", reader, *corners]) for image, reader, name, *corners in rows]
    (copy / "train.csv").write_text("\n".join(table))
    shutil.rmtree(copy / "annotations")
    main = importlib.import_module("prepare_vindr_local").main
    assert main([str(copy), "--output", str(tmp_path), "--workers", "0"]) == 0
    splits = {split: load_split(tmp_path / ROW / f"{split}.json", BY_NAME[ROW], split) for split in SPLITS}
    assert {split: len(records) for split, records in splits.items()} == {"train": 7, "val": 1, "test": 2}


def test_images_without_a_row_must_be_explained(release: Callable[[str], Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release(ROW).root, copy)
    file = copy / "annotations" / "annotations_test.csv"
    file.write_text("\n".join(row for row in file.read_text().splitlines() if "No finding" not in row))
    main = importlib.import_module("prepare_vindr_local").main
    command = [str(copy), "--output", str(tmp_path), "--workers", "0"]
    assert main(command) == 1 and not (tmp_path / ROW).exists()
    assert main([*command, "--unlisted", "negative"]) == 0
    records = load_split(tmp_path / ROW / "test.json", BY_NAME[ROW], "test")
    assert len(records) == 4 and all(record["annotated"]["loc"] for record in records)


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        file = root / "annotations" / "annotations_test.csv"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class_name", "label", "no column 'class_name'"),
        (",No finding,,,,", ",Nothing,,,,", "class 'Nothing' is not one of"),
        (",No finding,,,,", ",Calcification,,,,", "has a corner that is not a number"),
        (",No finding,,,,", ",Calcification,1,2,1,9", "has no area"),
        (",No finding,,,,", ",Calcification,1,2,2048,9", "extends beyond its image of 86 x 96 pixels"),
    ],
)
def test_faulty_tables_are_refused(refused: Callable[..., str], old: str, new: str, message: str) -> None:
    assert message in refused(ROW, edit(old, new))


@pytest.mark.parametrize("value", ["0", "1", "nan"])
def test_a_fusion_threshold_out_of_range_is_refused(refused: Callable[..., str], value: str) -> None:
    assert "--fusion-iou is" in refused(ROW, lambda root: None, "--fusion-iou", value)
