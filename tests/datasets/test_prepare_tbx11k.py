"""TBX11K: from the drawn release to what the world drew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROW = "tbx11k"


def test_labels_and_boxes_are_what_was_drawn(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 8, "val": 6}
    unknown = boxes = negatives = 0
    for film, record in [pair for rows in splits.values() for pair in rows]:
        assert record["labels"] == [film.labels["Tuberculosis"]]
        found = sorted(tuple(row["bbox"]) for row in record["annotations"])
        if not record["annotated"]["loc"]:
            unknown += 1
            assert record["labels"] == [1] and not found
            continue
        assert found == sorted(tuple(map(float, instance.box)) for instance in film.instances)
        boxes += len(found)
        negatives += not found
    assert unknown == 1 and boxes > 2 and negatives > 4


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        file = root / "annotations" / "json" / "TBX11K_train.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["images"][0].update(file_name="extra/da/0001.png"), "'extra/da/0001.png' is in none of the fold"),
        (lambda t: t["categories"][0].update(name="Nodule"), "annotation 0 has an unknown image or a category not in"),
        (lambda t: t["annotations"][0].update(bbox=[90, 90, 50, 50]), "extends beyond its image of 96 x 96 pixels"),
        (lambda t: t["annotations"][0].update(bbox=[5, 5, 0, 9]), "has no area"),
        (lambda t: t["annotations"][0].update(bbox=[float("nan"), 5, 3, 9]), "must be four finite numbers"),
        (lambda t: t["images"][1].update(id=t["images"][0]["id"]), "two images have the same id"),
        (lambda t: t.pop("annotations"), "not a COCO detection file (KeyError: 'annotations')"),
        (lambda t: t["images"].append(t["images"][0] | {"id": 99}), "imgs/"),
    ],
)
def test_a_faulty_file_is_refused(refused: Callable[..., str], change: Callable[[Any], object], message: str) -> None:
    assert message in refused(ROW, edit(change))
