"""ChestX-Det: from the drawn release to what the world drew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fx_d2.data.masks import decode_masks
from fx_d2.data.table import BY_NAME

ROW = "chestx_det"
SPEC = BY_NAME[ROW]


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask without holes and dots: what outlines of its pieces can say."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    plate = np.zeros(mask.shape, np.uint8)
    for contour in contours:
        if len(contour) > 2:
            cv2.fillPoly(plate, [contour], 1)
    return plate


def test_labels_boxes_and_masks_are_what_was_drawn(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 10, "test": 4}
    found = 0
    for film, record in [pair for rows in splits.values() for pair in rows]:
        assert record["labels"] == [*film.labels.values()]
        masks = decode_masks(record["masks"], ROW)
        for i, name in enumerate(SPEC.seg_classes):
            assert np.array_equal(masks[..., i], filled(film.merged(name))), name
            boxes = np.array([box["bbox"] for box in record["annotations"] if box["category_id"] == i])
            drawn = np.array([instance.box for instance in film.instances if instance.name == name])
            assert len(boxes) >= len(drawn) and bool(len(boxes)) == bool(len(drawn))
            if len(drawn):
                found += len(drawn)
                # A release's box is the polygon's extent, corner to corner: a pixel less than that of the mask.
                low, high = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
                assert np.abs(low - drawn[:, :2].min(0)).max() <= 1
                assert np.abs(high - (drawn[:, :2] + drawn[:, 2:]).max(0)).max() <= 1
    assert found > 14


def test_boxes_can_be_the_polygons_extents(prepare: Callable[..., Any]) -> None:
    for film, record in prepare(ROW, "--boxes", "polygons", "--val-share", "0.2")["train"]:
        names = [instance.name for instance in film.instances]
        for instance in film.instances:
            same = [b["bbox"] for b in record["annotations"] if SPEC.loc_classes[b["category_id"]] == instance.name]
            if names.count(instance.name) == len(same) == 1:
                assert tuple(same[0]) == instance.box


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A change of the first entry with a finding."""

    def apply(root: Path) -> None:
        file = root / "ChestX_Det_train.json"
        content = json.loads(file.read_text())
        change(next(entry for entry in content if entry["syms"]))
        file.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["syms"].append("Mass"), "an entry needs file_name, and"),
        (lambda entry: entry.pop("polygons"), "an entry needs file_name, and"),
        (lambda entry: entry["syms"].__setitem__(0, "mass"), "finding 'mass' is not one of"),
        (lambda entry: entry["boxes"].__setitem__(0, [5, 5, 5, 9]), "has no area"),
        (lambda entry: entry["boxes"].__setitem__(0, None), "box None must be four finite numbers"),
        (lambda entry: entry["syms"].__setitem__(0, ["Mass"]), "is not one of"),
        (lambda entry: entry["boxes"].__setitem__(0, [5, 5, 900, 9]), "extends beyond its image of 96 x 96"),
        (lambda entry: entry["polygons"].__setitem__(0, [[1, 2], [3]]), "polygon 0 must be a list of points"),
        (lambda entry: entry.update(file_name="lost.png"), "train_data/lost.png: image file cannot be read"),
    ],
)
def test_a_faulty_entry_is_refused(
    refused: Callable[..., str], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert message in refused(ROW, edit(change))


@pytest.mark.parametrize("polygon", [[], None, "x", [[1, 2], [3]]])
def test_a_faulty_polygon_of_which_a_box_is_made_is_refused(refused: Callable[..., str], polygon: object) -> None:
    change = edit(lambda entry: entry["polygons"].__setitem__(0, polygon))
    assert "polygon 0 must be a list of points" in refused(ROW, change, "--boxes", "polygons")
