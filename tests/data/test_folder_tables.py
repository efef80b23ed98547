"""The readers of a plain folder's text files; faults of whole folders are in test_folder.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fx_d2.data.folder_tables import read_boxes, read_description, read_names, read_table
from fx_d2.structures import FXError


def test_table_survives_byte_order_mark_crlf_and_blanks(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(b'\xef\xbb\xbfimage, tb ,note\r\na.png, 1 ,"x, y"\r\n\r\n')
    row = {"image": "a.png", "tb": "1", "note": "x, y", "sex": ""}
    assert read_table(file, ["tb"], ["note", "sex"]) == {"a.png": row}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column 'image'"),
        (b"image,tb\n", "has no rows"),
        (b"image,tb,tb\na,1,1\n", "column 'tb' occurs twice"),
        (b"image,tb\n\xff,1\n", "not UTF-8 text after row 1"),
        (b"image,tb\na,1\na,0\n", "image 'a' occurs twice"),
        (b"image,tb\na,1\n,0\n", "a row names no image: .*'tb': '0'"),
    ],
)
def test_bad_table(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(FXError, match=f"labels.csv: .*{message}"):
        read_table(tmp_path / "labels.csv", ["tb"])


def test_names(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n\r\nb c.png \r\n")
    assert read_names(tmp_path / "train.txt") == ["a.png", "b c.png"]


def test_boxes_tell_negatives_from_unknown(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": name, "width": 9, "height": 8} for i, name in enumerate("ab")]
    box = {"id": 1, "image_id": 0, "category_id": 4, "bbox": [1, 2, 3, 4]}
    document = {"images": images, "annotations": [box], "categories": [{"id": 4, "name": "tb"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    boxes = read_boxes(tmp_path / "boxes.json", ["tb"], {"a", "b", "c"})
    assert boxes["a"].boxes == [("tb", [1, 2, 3, 4])] and boxes["b"].boxes == [] and "c" not in boxes
    assert boxes["a"].size == (9, 8)
    (tmp_path / "boxes.json").write_text(json.dumps(document | {"images": [], "annotations": []}))
    assert read_boxes(tmp_path / "boxes.json", ["tb"], {"a"}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": [0]}, "not a COCO detection JSON"),
        ({"image_id": 9}, "annotation 1: there is no image with id 9"),
        ({"category_id": "4"}, "annotation 1: there is no category with id '4'"),
        ({"bbox": ["1", "2", "3", "4"]}, "annotation 1: bbox must be four numbers"),
        ({"bbox": 5}, "annotation 1: bbox must be four numbers"),
    ],
)
def test_bad_boxes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    images = [{"id": 0, "file_name": "a", "width": 9, "height": 8}]
    box = {"id": 1, "image_id": 0, "category_id": 4, "bbox": [1, 2, 3, 4]} | change
    document = {"images": images, "annotations": [box], "categories": [{"id": 4, "name": "tb"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    with pytest.raises(FXError, match=f"boxes.json: {message}"):
        read_boxes(tmp_path / "boxes.json", ["tb"], {"a"})


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("categories", {"id": 5, "name": None}, r"categories \['None', 'tb'\] are not those"),
        ("images", {"id": 1, "file_name": 3, "width": 9, "height": 8}, "image '3' is not among"),
        ("images", {"id": 1, "file_name": "a", "width": float("inf"), "height": 8}, "not a COCO detection JSON"),
        ("images", {"id": 1, "file_name": "a", "width": 9, "height": 8}, "'a' is the file_name of 2 images"),
        ("images", {"id": 0, "file_name": "b", "width": 9, "height": 8}, "0 is the id of 2 images"),
    ],
)
def test_bad_images_and_categories(tmp_path: Path, part: str, change: dict[str, Any], message: str) -> None:
    document: dict[str, list[Any]] = {
        "images": [{"id": 0, "file_name": "a", "width": 9, "height": 8}],
        "annotations": [],
        "categories": [{"id": 4, "name": "tb"}],
    }
    document[part].append(change)
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    with pytest.raises(FXError, match=f"boxes.json: {message}"):
        read_boxes(tmp_path / "boxes.json", ["tb"], {"a"})


def test_minimal_description(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    file.write_text('{"name": "a", "title": null, "splits": {"train": "train.txt"}, "labels": {"columns": ["tb"]}}')
    assert read_description(tmp_path)["name"] == "a"
    for text, message in (("[]", "must hold an object"), ('{"name": "a", "splits": {}}', "`splits` must map")):
        file.write_text(text)
        with pytest.raises(FXError, match=message):
            read_description(tmp_path)
    with pytest.raises(FXError, match="no such folder"):
        read_description(tmp_path / "absent")
