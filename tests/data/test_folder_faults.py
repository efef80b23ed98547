"""Each wrong input of a plain folder has one clear line and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from .folder_changes import rename_image, repeat_row, replace_text


def _big_mask(root: Path) -> None:
    cv2.imwrite(str(root / "masks" / "left_lung" / "0.png"), np.zeros((5, 5), dtype=np.uint8))


def _same_stem(root: Path) -> None:
    (root / "images" / "a").mkdir()
    (root / "images" / "1.png").rename(root / "images" / "a" / "0.png")
    for file in ("labels.csv", "masks_index.csv", "splits/train.txt"):
        replace_text(file, "1.png", "a/0.png")(root)


def _without(*keys: str) -> Callable[[Path], None]:
    """dataset.json loses keys."""

    def change(root: Path) -> None:
        description = json.loads((root / "dataset.json").read_text())
        kept = {key: value for key, value in description.items() if key not in keys}
        (root / "dataset.json").write_text(json.dumps(kept))

    return change


def _bad_test_box(root: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [25, 1, 9, 9]}
    document = json.loads((root / "boxes_test.json").read_text()) | {"annotations": [box]}
    (root / "boxes_test.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "argv", "message"),
    [
        (lambda root: (root / "dataset.json").unlink(), [], "dataset.json: not found"),
        (replace_text("dataset.json", '"name": "tiny", ', ""), [], "has no `name`"),
        (replace_text("dataset.json", "{", ""), [], "not readable json"),
        (replace_text("dataset.json", ', "columns": ["tb", "other"]', ""), [], "`labels` has no `columns`"),
        (replace_text("dataset.json", '"test": "splits', '"exam": "splits'), [], "unknown: ['exam']"),
        (replace_text("dataset.json", '"labels"', '"lables"'), [], "dataset.json: has the unknown key `lables`"),
        (replace_text("dataset.json", '"structures"', '"structure"'), [], "`masks` has the unknown key `structure`"),
        (replace_text("dataset.json", '"labels.csv"', "3"), [], "`labels` has a `file` that is not a string: 3"),
        (
            replace_text("dataset.json", '["tb"]', "[1]"),
            [],
            "`boxes.drawn` has a `categories` that is not a list of strings",
        ),
        (
            replace_text("dataset.json", '"splits/test.txt"', "null"),
            [],
            "a `splits` that is not an object of file names",
        ),
        (replace_text("dataset.json", '{"drawn"', '[], "boxe": {"drawn"'), [], "a `boxes` that is not an object"),
        (lambda root: (root / "labels.csv").unlink(), [], "labels.csv: not found"),
        (lambda root: None, ["--labels", "cough"], "no column 'cough'; it has ['image', 'patient_id', 'sex', 'tb'"),
        (lambda root: None, ["--boxes", "dots"], "no boxes 'dots'; choose --boxes one of ['drawn']"),
        (lambda root: None, ["--masks", "heart"], "no mask structure 'heart'"),
        (lambda root: None, ["--tasks", "dance"], "no annotations for task 'dance'"),
        (lambda root: None, ["--flip-pairs", "a-b"], "--flip-pairs: 'a-b'"),
        (lambda root: None, ["--flip-pairs", "a:b"], "flip_pairs names unknown classes"),
        (lambda root: None, ["--name", "chexpert"], "built-in dataset with other"),
        (
            replace_text("labels.csv", "a,F,1,0", "a,F,2,0"),
            [],
            "image '0.png': column 'tb': '2' is not 1, 0, -1 or blank",
        ),
        (replace_text("labels.csv", "a,F,1,0", "a,F,1"), [], "row 2 has 4 cells"),
        (replace_text("labels.csv", "1.png", "0.png"), [], "image '0.png' occurs twice"),
        (replace_text("labels.csv", "2.png,c", "2.png,a"), [], "patient 'a' is in train and in test"),
        (replace_text("labels.csv", "2.png,c", "2.png,"), [], "patient_id is blank"),
        (replace_text("splits/test.txt", "2.png", "9.png"), [], "image '9.png' is not in"),
        (replace_text("splits/test.txt", "2.png", ""), [], "the split is empty"),
        (replace_text("splits/test.txt", "2.png", "2.png\n2.png"), [], "'2.png' occurs twice"),
        (replace_text("splits/train.txt", "1.png", "2.png"), ["--tasks", "cls"], "'2.png' is in train and in test"),
        (lambda root: (root / "images" / "1.png").unlink(), [], "file not found, but labels.csv lists it\n"),
        (rename_image("1.png", "1.PNG"), [], "1.png: image file not found, but labels.csv lists it; there is '1.PNG'"),
        (rename_image("1.png", "1"), [], "1.png: image file not found, but labels.csv lists it\n"),
        (replace_text("labels.csv", "1.png", "1"), [], "image '1.png' is not in"),
        (replace_text("labels.csv", ",", ";"), [], "separated by commas: 'image;patient_id;"),
        (lambda root: (root / "images" / "1.png").write_text("x"), [], "1.png: not a complete PNG"),
        (replace_text("masks_index.csv", "1.png", "7.png"), [], "image '7.png' is not in"),
        (replace_text("masks_index.csv", "1.png,,,", "1.png,-1,,"), [], "-1 has no meaning for a mask"),
        (_same_stem, [], "images '0.png' and 'a/0.png' would share the mask file name 0.png"),
        (_big_mask, [], "the mask is 5 x 5, its image 30 x 20"),
        (lambda root: (root / "masks" / "left_lung" / "0.png").unlink(), [], "0.png: mask file cannot be read"),
        (
            replace_text("boxes_train.json", "0.png", "8.png"),
            [],
            "'8.png' is not among the images of its split or table",
        ),
        (replace_text("boxes_train.json", '"images": [', '"images": [{"id": 5}, '), [], "not a COCO detection JSON"),
        (repeat_row("images", {"id": 6}), [], "boxes_train.json: '0.png' is the file_name of 2 images"),
        (repeat_row("images", {"file_name": "1.png"}), [], "boxes_train.json: 5 is the id of 2 images"),
        (repeat_row("categories", {"name": "flu"}), [], "boxes_train.json: 7 is the id of 2 categories"),
        (
            replace_text("dataset.json", '"files": {"train', '"file": "x", "files": {"train'),
            [],
            "needs either `file`, or `files` by split",
        ),
        (_without("splits"), [], "`boxes.drawn` has `files` by split but there are no `splits`: give one `file`"),
        (_without("splits", "boxes"), ["--test-share", "0.9"], "src: shares of val and test must be 0 or more"),
        (lambda root: None, ["--test-share", "0.5"], "--test-share: there is already a test split"),
        (replace_text("boxes_train.json", '"width": 30', '"width": 31'), [], "size (31, 20)"),
        (replace_text("boxes_train.json", "[2, 3, 10, 9]", "[25, 3, 10, 9]"), [], "extends beyond its image"),
        (_bad_test_box, [], "extends beyond its image"),
        (replace_text("boxes_train.json", "[2, 3, 10, 9]", "[2, 3]"), [], "bbox must be four numbers"),
        (replace_text("boxes_train.json", '"category_id": 7', '"category_id": 8'), [], "no category with id 8"),
        (replace_text("boxes_train.json", '"image_id": 5', '"image_id": 6'), [], "no image with id 6"),
        (replace_text("boxes_train.json", '"name": "tb"', '"name": "flu"'), [], "categories ['flu'] are not those"),
    ],
)
def test_bad_folder(
    script: ModuleType,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    argv: list[str],
    message: str,
) -> None:
    """One line on stderr, exit code 1, nothing written."""
    change(source)
    assert script.main([str(source), "--output", str(tmp_path / "out"), *argv]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
