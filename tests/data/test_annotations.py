"""The annotation format: what is written is read back, and every fault has one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.mask import encode

from fx_d2.data.annotations import check_patients, load_spec, load_split, write_spec, write_split
from fx_d2.data.masks import decode_masks
from fx_d2.structures import DatasetSpec, FXError


def test_round_trip(make_dataset: Callable[..., Path], spec: DatasetSpec, images: list[dict[str, Any]]) -> None:
    """Labels, boxes, masks and what is unknown survive."""
    first, second = load_split(make_dataset() / "toy" / "train.json", spec, "train")
    assert first["labels"] == [1, 0, None] and second["labels"] == [-1, 1, 0]
    assert first["annotated"] == {"cls": True, "loc": True, "seg": True}
    assert second["annotated"] == {"cls": True, "loc": False, "seg": False}
    assert [row["category_id"] for row in first["annotations"]] == [0, 1]
    assert first["masks"][2] is None
    assert (first["patient_id"], first["study_id"], second["study_id"]) == ("train_p0", "s7", "")
    np.testing.assert_array_equal(decode_masks([first["masks"][0]], "")[:, :, 0], images[0]["masks"][0])
    assert Path(first["file_name"]).is_file()


def test_pycocotools_opens_it(make_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The file is COCO detection json too."""
    coco = COCO(str(make_dataset() / "toy" / "train.json"))
    assert len(coco.getImgIds()) == 2
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == ["left_lung", "right_lung"]


def test_all_unknown_labels_are_no_annotation(tmp_path: Path, spec: DatasetSpec, images: list[dict[str, Any]]) -> None:
    """Under "ignore", an image of blanks and uncertains has nothing to teach; where one of the two is known it has."""
    images[1]["labels"] = [None, -1, None]
    for row, annotated in (
        (spec, False),
        (replace(spec, blank="zeros"), True),
        (replace(spec, uncertain="ones"), True),
    ):
        write_split(tmp_path / "train.json", spec=row, split="train", image_root=".", images=images)
        assert load_split(tmp_path / "train.json", row, "train")[1]["annotated"]["cls"] is annotated


def test_spec_round_trip(tmp_path: Path, spec: DatasetSpec) -> None:
    """dataset.yaml gives the same row, and people can read it: the name first, letters as they are."""
    spec = replace(spec, title="Épanchement")
    write_spec(tmp_path, spec)
    assert load_spec(tmp_path) == spec
    text = (tmp_path / "dataset.yaml").read_text(encoding="utf-8")
    assert text.startswith("name: toy\n") and "title: Épanchement\n" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not readable yaml"),
        ("name: x\nfoo: 1", "unknown keys"),
        ("name: x", "no classes"),
        ("[1]", "a mapping"),
        ("name: 3", "wrong type"),
        ("name: x\ncls_classes: 5", "wrong type"),
    ],
)
def test_bad_spec(tmp_path: Path, text: str, message: str) -> None:
    """A broken dataset.yaml is named."""
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(FXError, match=message) as caught:
        load_spec(tmp_path)
    assert "dataset.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_broken_json(tmp_path: Path, spec: DatasetSpec) -> None:
    """No file, half a file."""
    with pytest.raises(FXError, match="not found; prepare"):
        load_split(tmp_path / "train.json", spec, "train")
    (tmp_path / "train.json").write_text('{"info":')
    with pytest.raises(FXError, match="not a readable json"):
        load_split(tmp_path / "train.json", spec, "train")


def test_what_is_written_of_the_release_and_the_file(
    tmp_path: Path, spec: DatasetSpec, images: list[dict[str, Any]]
) -> None:
    """The release's version stands in info; tuples and numpy's numbers are written as json's."""
    images[0] |= {"width": np.int64(60), "patient_id": np.int64(3), "file_name": Path("a.png")}
    images[0] |= {"boxes": np.zeros((0, 2)), "masks": [{"file": Path("m.png")}, None, None]}
    images[0] |= {"intensity": (np.uint16(0), np.uint16(4095)), "stored_size": np.array([20, 30]), "study_id": 7}
    path, spec = tmp_path / "train.json", replace(spec, source="the row's", licence="the row's")
    write_split(path, spec=spec, split="train", image_root=".", images=images, release="v2", licence="CC0")
    info = json.loads(path.read_text())["info"]
    assert (info["release"], info["licence"], info["dataset"], info["split"]) == ("v2", "CC0", "toy", "train")
    assert info["source"] == "the row's"  # as none was given
    first, second = load_split(path, spec, "train")
    assert (first["intensity"], first["stored_size"], first["study_id"]) == ([0, 4095], [20, 30], "7")
    assert (first["width"], first["patient_id"], first["file_name"]) == (60, "3", str(tmp_path / "a.png"))
    assert first["annotated"]["loc"] and first["masks"][0] == {"file": str(tmp_path / "m.png")}
    assert (second["intensity"], second["stored_size"]) == (None, None)


def test_masks_as_arrays_and_as_codes(tmp_path: Path, spec: DatasetSpec, images: list[dict[str, Any]]) -> None:
    """An array, its code as pycocotools gives it (bytes), and as json holds it (text) are written alike."""
    array = images[0]["masks"][0]
    code = encode(np.asfortranarray(array, dtype=np.uint8))
    images[0]["masks"] = [array, code, code | {"counts": code["counts"].decode()}]
    write_split(tmp_path / "train.json", spec=spec, split="train", image_root=".", images=images)
    masks = load_split(tmp_path / "train.json", spec, "train")[0]["masks"]
    assert masks[0] == masks[1] == masks[2]
    np.testing.assert_array_equal(decode_masks(masks[:1], "")[:, :, 0], array)


def test_masks_need_seg_classes(tmp_path: Path, spec: DatasetSpec, images: list[dict[str, Any]]) -> None:
    row = replace(spec, seg_classes=())
    with pytest.raises(FXError, match=r"train.json: image 'a.png': .* no seg classes"):
        write_split(tmp_path / "train.json", spec=row, split="train", image_root=".", images=images)
    write_split(tmp_path / "train.json", spec=row, split="train", image_root=".", images=images[1:])
    assert load_split(tmp_path / "train.json", row, "train")[0]["masks"] is None


def test_content_hash(make_dataset: Callable[..., Path], spec: DatasetSpec) -> None:
    """A changed label is noticed, another layout of the same content is not; without a hash nothing is compared."""
    path = make_dataset() / "toy" / "train.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document, indent=1))
    assert len(load_split(path, spec, "train")) == 2
    document["images"][0]["labels"][1] = 1
    path.write_text(json.dumps(document))
    with pytest.raises(FXError, match=r"train.json: its content does not match info.content_hash"):
        load_split(path, spec, "train")
    del document["info"]["content_hash"]
    path.write_text(json.dumps(document))
    assert load_split(path, spec, "train")[0]["labels"] == [1, 1, None]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("boxes", [("heart", [1, 1, 5, 5])], "box class 'heart'"),
        ("boxes", [("left_lung", [50, 1, 20, 5])], "extends beyond its image"),
        ("labels", [0.5, 0, 0], "label 0.5"),
        ("labels", [1, 0], "2 labels for 3"),
        ("labels", [[1, 0, 0], [1, 0, 0]], "image 'a.png': label"),
        ("lables", [1, 0, 0], "image 'a.png': unknown key 'lables'"),
        ("boxes", [("left_lung", [1, 1, 5])], "image 'a.png': box .* must be four numbers"),
        ("boxes", [[1, 1, 5, 5]], "image 'a.png': malformed"),
        ("masks", [[[0, 1]], None, None], "image 'a.png': a mask must be an array"),
        ("masks", [np.zeros((40, 60, 1)), None, None], "image 'a.png': a mask must be an array"),
        ("meta", {"age": float("nan")}, "image 'a.png': meta .* is not plain data"),
        ("meta", {"age": np.int64(3)}, "image 'a.png': meta .* is not plain data"),
        ("width", 60.5, "size 60.5 x 40 is not two positive integers"),
        ("patient_id", None, "patient_id None must be a non-blank string"),
        ("patient_id", float("nan"), "patient_id nan must be a non-blank string"),
        ("patient_id", " ", "patient_id ' ' must be a non-blank string"),
        ("file_name", None, "image None: malformed"),
        ("file_name", "/a.png", "must be a path relative"),
        ("masks", [np.zeros((3, 3)), None, None], "mask .left_lung. is of size"),
    ],
)
def test_writer_refuses_and_leaves_nothing(
    tmp_path: Path, spec: DatasetSpec, images: list[dict[str, Any]], key: str, value: Any, message: str
) -> None:
    """What the loader would refuse is not written."""
    images[0][key] = value
    with pytest.raises(FXError, match=message) as caught:
        write_split(tmp_path / "toy" / "train.json", spec=spec, split="train", image_root=".", images=images)
    assert not (tmp_path / "toy").exists() and "train.json: image" in str(caught.value)


def test_softmax_needs_one_class(tmp_path: Path, spec: DatasetSpec, images: list[dict[str, Any]]) -> None:
    """A softmax row has exactly one positive, of which blanks may hide one and no more."""
    row = replace(spec, cls_kind="softmax")
    for labels in ([1, 1, 0], [0, 0, 0], [1, 1, None]):
        images[1]["labels"] = labels
        with pytest.raises(FXError, match="exactly one 1"):
            write_split(tmp_path / "t.json", spec=row, split="t", image_root=".", images=images)
    images[1]["labels"] = [0, None, 0]
    write_split(tmp_path / "t.json", spec=row, split="t", image_root=".", images=images)


def test_patient_in_two_splits() -> None:
    """A shared patient is named with both splits."""
    check_patients({"train": [{"patient_id": "a"}], "test": [{"patient_id": "b"}]})
    with pytest.raises(FXError, match="'a' is in train and in test"):
        check_patients({"train": [{"patient_id": "a"}], "test": [{"patient_id": "a"}]})
