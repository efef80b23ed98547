"""Every fault of an annotation file has one clear error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fx_d2.data.annotations import load_split
from fx_d2.data.records import read_records
from fx_d2.structures import DatasetSpec, FXError


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a document at a path such as "images/0/width"."""

    def change(document: Any) -> None:
        *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in parents:
            document = document[key]
        document[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("info/format", "coco"), "not an annotation file"),
        (_set("info/format_version", 2), "format version 2"),
        (_set("info/dataset", "other"), "its dataset is 'other'"),
        (_set("info/split", "val"), "its split is 'val'"),
        (_set("classes/cls", ["a"]), "cls classes"),
        (_set("categories/0/name", "heart"), "categories must be"),
        (_set("images", []), "empty split"),
        (_set("images/1/file_name", "train_a.png"), "'train_a.png' is listed twice"),
        (_set("images/1/id", 1), "id 1 occurs twice"),
        (_set("images/0/labels", [1]), "'train_a.png': 1 labels for 3 classes"),
        (_set("images/0/labels", [1, 0, 2]), "label 2 is not"),
        (_set("images/0/labels", [1, 0, float("nan")]), "label nan is not"),
        (_set("images/0/width", 0), "positive integers"),
        (_set("images/0/masks", [None]), "1 masks for 3"),
        (_set("images/0/masks/0/size", [9, 9]), "mask 'left_lung' is of size"),
        (_set("images/0/masks/0/counts", "PP1"), "mask 'left_lung' has a broken run-length code"),
        (_set("images/0/masks/0/counts", [5, 5]), "mask 'left_lung' is not a compressed RLE"),
        (_set("images/0/ignore_mask", {"size": [9, 9], "counts": ""}), "ignore_mask"),
        (_set("images/0/masks/0", {"file": 3}), "mask 'left_lung' must have one key, .file."),
        (_set("images/0/intensity", [0, 0]), "intensity .* two different numbers"),
        (_set("images/0/intensity", [0, "x"]), "intensity"),
        (_set("images/0/intensity", [0, float("inf")]), "intensity"),
        (_set("images/0/stored_size", [41, 60]), "stored_size"),
        (_set("images/0/stored_size", [40, 61]), "stored_size"),
        (_set("images/0/stored_size", [20, 0]), "stored_size"),
        (_set("images/0/stored_size", [20.5, 30]), "stored_size"),
        (_set("images/0/stored_size", 5), "stored_size"),
        (_set("images/0/boxes_annotated", False), "boxes_annotated false"),
        (_set("annotations/0/bbox", [40, 10, 0, 5]), "annotation 1.*has no area"),
        (_set("annotations/0/bbox", [50, 10, 16, 20]), "extends beyond its image"),
        (_set("annotations/0/bbox", [-3, 10, 16, 20]), "extends beyond its image"),
        (_set("annotations/0/bbox", [-0.6, 10, 16, 20]), "extends beyond its image"),
        (_set("annotations/0/bbox", [40, 20, 16, 20.6]), "extends beyond its image"),
        (_set("annotations/0/bbox", [float("nan"), 10, 16, 20]), "finite"),
        (_set("annotations/0/bbox", [1, 2]), "four numbers"),
        (_set("annotations", [{"id": 1, "image_id": 1, "category_id": 1, "bbox": 5}]), "four numbers"),
        (_set("annotations/0/category_id", 3), "unknown category_id"),
        (_set("annotations/0/image_id", 9), "no image with id 9"),
        (_set("annotations/0/iscrowd", 1), "crowd"),
        (_set("images/0", {"id": 1}), "malformed or incomplete"),
        (_set("images/0/id", "1"), "its id '1' is not an integer"),
        (_set("images/0/id", [1]), r"its id \[1\] is not an integer"),
        (_set("images/0/labels", ""), "its labels '' are neither a list nor null"),
        (_set("images/0/masks", {"file": "a.png"}), "its masks {'file': 'a.png'} are neither a list nor null"),
        (_set("images/0/patient_id", 3), "patient_id 3 must be a non-blank string"),
        (_set("images/0/patient_id", ""), "patient_id '' must be a non-blank string"),
        (_set("images/0/boxes_annotated", "no"), "boxes_annotated 'no' is not true or false"),
        (_set("images/0/meta", "old"), "meta 'old' is not an object"),
        (_set("images/0/file_name", "/a.png"), "must be a path relative to info.image_root"),
        (_set("images/0/file_name", ""), "must be a path relative to info.image_root"),
        (_set("annotations/0/bbox", ["1", "1", "5", "5"]), "four numbers"),
        (_set("annotations/0/bbox", [10**400, 1, 5, 5]), "cannot be read"),
        (_set("annotations/0/category_id", 1.0), "unknown category_id"),
        (_set("info/image_root", 3), "image_root must be a string"),
    ],
)
def test_bad_file(
    make_dataset: Callable[..., Path], spec: DatasetSpec, change: Callable[[Any], None], message: str
) -> None:
    """Each fault of a file is one line naming the file."""
    path = make_dataset() / "toy" / "train.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(FXError) as caught:
        load_split(path, spec, "train")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    # pytest puts the name of the test, and so the message that is asked for, into the path.
    assert re.search(message, str(caught.value).replace(str(path), ""))


def test_boxes_go_to_their_images(spec: DatasetSpec) -> None:
    """Whatever the order of the ids and of the annotations."""
    row = {"width": 9, "height": 9, "patient_id": "p", "labels": [1, 0, None], "boxes_annotated": True, "masks": None}
    images = [row | {"id": i, "file_name": f"{i}.png"} for i in (7, 3, 5)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [i, 0, 1, 1]} for i in (3, 7)]
    records = read_records({"images": images, "annotations": boxes}, spec, "file", image_root="root")
    assert [record["image_id"] for record in records] == [7, 3, 5]
    assert [[box["bbox"][0] for box in record["annotations"]] for record in records] == [[7], [3], []]


def test_a_box_may_leave_its_image_by_half_a_pixel(spec: DatasetSpec) -> None:
    """On each side; and an image without labels is not annotated for them."""
    image = {"id": 1, "file_name": "a", "width": 9, "height": 9, "patient_id": "p", "boxes_annotated": True}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [-0.5, -0.5, 10, 10]}
    document = {"images": [image | {"labels": None, "masks": None}], "annotations": [box]}
    (record,) = read_records(document, spec, "file", image_root="root")
    assert record["annotations"][0]["bbox"] == box["bbox"]
    assert record["annotated"] == {"cls": False, "loc": True, "seg": False}


def test_the_name_that_is_there_twice_is_named(spec: DatasetSpec) -> None:
    row = {"width": 9, "height": 9, "patient_id": "p", "labels": None, "boxes_annotated": False, "masks": None}
    images = [row | {"id": i, "file_name": name} for i, name in enumerate(("a", "b", "b"))]
    with pytest.raises(FXError, match="file: image 'b'"):
        read_records({"images": images, "annotations": []}, spec, "file", image_root="root")
