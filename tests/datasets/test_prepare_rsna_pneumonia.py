"""RSNA Pneumonia: from the drawn release to what the world drew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROW = "rsna_pneumonia"


def test_classes_and_boxes_are_what_was_drawn(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert sum(map(len, splits.values())) == 14
    for film, record in [pair for rows in splits.values() for pair in rows]:
        assert record["labels"] == [*film.labels.values()] and sum(record["labels"]) == 1
        assert [tuple(box["bbox"]) for box in record["annotations"]] == [instance.box for instance in film.instances]
        assert record["annotated"]["loc"] and record["patient_id"] == film.digest()


def mapping_rows(films: tuple[Any, ...]) -> list[dict[str, str]]:
    return [
        {"subset_img_id": film.digest(), "img_id": f"{film.patient:08d}_{film.follow_up:03d}.png"} for film in films
    ]


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_patients_of_chestxray14_stay_together(
    prepare: Callable[..., Any], release: Callable[[str], Any], tmp_path: Path, ending: str
) -> None:
    rows, file = mapping_rows(release(ROW).films), tmp_path / f"mapping.{ending}"
    table = "\n".join(["img_id,subset_img_id", *(f"{row['img_id']},{row['subset_img_id']}" for row in rows)])
    file.write_text(json.dumps(rows) if ending == "json" else table)
    splits = prepare(ROW, "--nih-mapping", str(file))
    assert all(record["patient_id"] == f"{film.patient:08d}" for pairs in splits.values() for film, record in pairs)


def test_a_mapping_must_name_every_image(refused: Callable[..., str], release: Callable[[str], Any]) -> None:
    rows = mapping_rows(release(ROW).films)

    def write(content: object) -> Callable[[Path], object]:
        return lambda root: (root / "mapping.json").write_text(json.dumps(content))

    options = ("--nih-mapping", "COPY/mapping.json")
    assert "has no row for image" in refused(ROW, write(rows[1:]), *options)
    assert "every entry needs subset_img_id and img_id" in refused(ROW, write([{"img_id": "a"}]), *options)
    wrong = [*rows, {"subset_img_id": "a", "img_id": "picture.png"}]
    assert "'picture.png' is not a ChestX-ray14 image name" in refused(ROW, write(wrong), *options)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("stage_2_detailed_class_info.csv", ",Normal", ",Lung Opacity", "which contradict each other"),
        ("stage_2_detailed_class_info.csv", ",Normal", ",normal", "class 'normal' is not one of"),
        ("stage_2_train_labels.csv", ".0,1\n", "9999.0,1\n", "extends beyond its image of 96 x 96 pixels"),
        ("stage_2_train_labels.csv", ".0,1\n", "abc,1\n", "holds something that is not a number"),
        ("stage_2_train_labels.csv", "Target", "target", "no column 'Target'"),
    ],
)
def test_faulty_tables_are_refused(
    refused_edit: Callable[..., str], name: str, old: str, new: str, message: str
) -> None:
    assert message in refused_edit(ROW, name, old, new)
