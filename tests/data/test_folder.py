"""A plain folder becomes a dataset; each wrong input has one clear line and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from fx_d2.data.annotations import load_spec, load_split
from fx_d2.data.cache import read_record, resize_image
from fx_d2.data.masks import decode_masks

PROJECT = Path(__file__).parents[2]
REAL = PROJECT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """datasets/prepare_folder.py as a module."""
    found = importlib.util.spec_from_file_location("prepare_folder", PROJECT / "datasets" / "prepare_folder.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with every kind of annotation: images 0, 1 in train, 2 in test."""
    root = tmp_path / "src"
    for part in ("images", "splits", "masks/left_lung", "masks/right_lung", "masks/ignore"):
        (root / part).mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(root / "images" / f"{i}.png"), np.full((20, 30), 40 * i, dtype=np.uint8))
        cv2.imwrite(str(root / "masks" / "left_lung" / f"{i}.png"), np.full((20, 30), 255, dtype=np.uint8))
        cv2.imwrite(str(root / "masks" / "ignore" / f"{i}.png"), np.full((20, 30), 255, dtype=np.uint8))
    (root / "labels.csv").write_bytes(
        "\ufeffimage,patient_id,sex,tb,other\r\n0.png,a,F,1,0\r\n1.png,b,,0,\r\n2.png,c,M,-1,1\r\n".encode()
    )
    (root / "masks_index.csv").write_text("image,left_lung,right_lung,ignore\n0.png,1,0,1\n1.png,,,\n2.png,1,,0\n")
    (root / "splits" / "train.txt").write_bytes(b"\xef\xbb\xbf0.png\r\n1.png\r\n")
    (root / "splits" / "test.txt").write_text("2.png\n")
    categories = [{"id": 7, "name": "tb"}]
    rows = [{"id": 5, "file_name": "0.png", "width": 30, "height": 20}]
    boxes = [{"id": 1, "image_id": 5, "category_id": 7, "bbox": [2, 3, 10, 9], "area": 90, "iscrowd": 0}]
    train = {"images": rows, "annotations": boxes, "categories": categories}
    (root / "boxes_train.json").write_text(json.dumps(train))
    rows = [{"id": 1, "file_name": "2.png", "width": 30, "height": 20}]
    (root / "boxes_test.json").write_text(json.dumps({"images": rows, "annotations": [], "categories": categories}))
    description = {
        "name": "tiny",
        "splits": {"train": "splits/train.txt", "test": "splits/test.txt"},
        "labels": {"file": "labels.csv", "columns": ["tb", "other"]},
        "boxes": {"drawn": {"files": {s: f"boxes_{s}.json" for s in ("train", "test")}, "categories": ["tb"]}},
        "masks": {"structures": ["left_lung", "right_lung"], "ignore": "ignore"},
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_sizes_in_the_table_are_compared_as_numbers(
    script: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pandas turns a column with a blank cell into floats."""
    command = [str(source), "--output", str(tmp_path / "out"), "--tasks", "cls"]
    for height, message in (("20.0", ""), ("21.0", "is 30 x 20, but labels.csv says 30.0 x 21.0"), ("x", "30.0 x x")):
        table = f"image,patient_id,width,height,tb,other\n0.png,a,30.0,{height},1,0\n1.png,b,,,0,0\n2.png,c,30,20,1,0\n"
        (source / "labels.csv").write_text(table)
        assert script.main(command) == bool(message)
        assert message in capsys.readouterr().err


def test_cache(script: ModuleType, source: Path, tmp_path: Path) -> None:
    """With --cache-size, training reads copies, and annotations keep the pixels of the originals."""
    images = [np.random.default_rng(i).integers(0, 4096, (20, 30), dtype=np.uint16) for i in range(3)]
    for i, image in enumerate(images):
        cv2.imwrite(str(source / "images" / f"{i}.png"), image)
    description = json.loads((source / "dataset.json").read_text()) | {"intensity": [0, 4095]}
    (source / "dataset.json").write_text(json.dumps(description))
    assert script.main([str(source), "--output", str(tmp_path / "out"), "--cache-size", "10"]) == 0
    target = tmp_path / "out" / "tiny"
    first = load_split(target / "train.json", load_spec(target), "train")[0]
    assert first["file_name"] == str(target / "cache_10" / "0.png")
    assert (first["height"], first["stored_size"], first["intensity"]) == (20, [10, 15], None)
    grey = np.rint(images[0] / 4095 * 255).astype(np.uint8)
    np.testing.assert_array_equal(read_record(first), resize_image(grey, (10, 15)))


def test_prepare(script: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels with blanks, boxes, masks, ignore regions, sides; BOM and CRLF do no harm."""
    assert script.main([str(source), "--output", str(tmp_path / "out"), "--uncertain", "ones"]) == 0
    spec = load_spec(tmp_path / "out" / "tiny")
    assert spec.tasks == ("cls", "loc", "seg") and spec.uncertain == "ones"
    assert spec.flip_pairs == (("left_lung", "right_lung"),)
    first, second = load_split(tmp_path / "out" / "tiny" / "train.json", spec, "train")
    assert first["labels"] == [1, 0] and second["labels"] == [0, None] and first["meta"] == {"sex": "F"}
    assert first["annotated"] == {"cls": True, "loc": True, "seg": True}
    assert second["annotated"] == {"cls": True, "loc": False, "seg": False}
    assert first["annotations"][0]["bbox"] == [2, 3, 10, 9] and first["ignore_mask"]
    masks = decode_masks(first["masks"], "here")  # the second is known to be empty: it has no file
    assert masks[..., 0].all() and not masks[..., 1].any()
    (test,) = load_split(tmp_path / "out" / "tiny" / "test.json", spec, "test")
    assert test["annotated"]["loc"] and not test["annotations"] and test["masks"][1] is None
    assert Path(test["file_name"]).samefile(source / "images" / "2.png")
    table = capsys.readouterr().out
    assert "label tb" in table and "mask left_lung" in table and "tiny_train" in table


def test_one_side_of_an_image_is_no_size(script: ModuleType, source: Path, tmp_path: Path) -> None:
    text = (source / "labels.csv").read_text(encoding="utf-8-sig").splitlines()
    rows = [f"{line},{width}" for line, width in zip(text, ("width", "30", "31", ""), strict=True)]
    (source / "labels.csv").write_text("\n".join(rows))
    assert script.main([str(source), "--output", str(tmp_path / "out")]) == 0
    (source / "labels.csv").write_text(
        "\n".join(f"{row},{h}" for row, h in zip(rows, ("height", 20, 20, 20), strict=True))
    )
    assert script.main([str(source), "--output", str(tmp_path / "out")]) == 1


def test_choices(script: ModuleType, source: Path, tmp_path: Path) -> None:
    """Name, tasks, columns and pairs can be chosen; images inside the output are named relatively."""
    argv = [str(source), "--output", str(tmp_path), "--name", "mine", "--tasks", "cls,seg", "--labels", "other"]
    assert script.main([*argv, "--masks", "right_lung", "--flip-pairs", ""]) == 0
    spec = load_spec(tmp_path / "mine")
    assert (spec.cls_classes, spec.loc_classes, spec.seg_classes) == (("other",), (), ("right_lung",))
    document = json.loads((tmp_path / "mine" / "train.json").read_text())
    assert document["info"]["image_root"] == "../src/images"
    assert Path(load_split(tmp_path / "mine" / "train.json", spec, "train")[0]["file_name"]).is_file()


def _replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / file).read_text(encoding="utf-8-sig")
        assert old in text
        (root / file).write_text(text.replace(old, new))

    return change


def _big_mask(root: Path) -> None:
    cv2.imwrite(str(root / "masks" / "left_lung" / "0.png"), np.zeros((5, 5), dtype=np.uint8))


def _same_stem(root: Path) -> None:
    (root / "images" / "a").mkdir()
    (root / "images" / "1.png").rename(root / "images" / "a" / "0.png")
    for file in ("labels.csv", "masks_index.csv", "splits/train.txt"):
        _replace(file, "1.png", "a/0.png")(root)


def _rename(old: str, new: str) -> Callable[[Path], Path]:
    return lambda root: (root / "images" / old).rename(root / "images" / new)


def _twice(part: str, change: dict[str, object]) -> Callable[[Path], None]:
    """The first row of a part of the training boxes stands there once more, changed."""

    def add(root: Path) -> None:
        document = json.loads((root / "boxes_train.json").read_text())
        document[part].append(document[part][0] | change)
        (root / "boxes_train.json").write_text(json.dumps(document))

    return add


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
        (_replace("dataset.json", '"name": "tiny", ', ""), [], "has no `name`"),
        (_replace("dataset.json", "{", ""), [], "not readable json"),
        (_replace("dataset.json", ', "columns": ["tb", "other"]', ""), [], "`labels` has no `columns`"),
        (_replace("dataset.json", '"test": "splits', '"exam": "splits'), [], "unknown: ['exam']"),
        (_replace("dataset.json", '"labels"', '"lables"'), [], "dataset.json: has the unknown key `lables`"),
        (_replace("dataset.json", '"structures"', '"structure"'), [], "`masks` has the unknown key `structure`"),
        (_replace("dataset.json", '"labels.csv"', "3"), [], "`labels` has a `file` that is not a string: 3"),
        (
            _replace("dataset.json", '["tb"]', "[1]"),
            [],
            "`boxes.drawn` has a `categories` that is not a list of strings",
        ),
        (_replace("dataset.json", '"splits/test.txt"', "null"), [], "a `splits` that is not an object of file names"),
        (_replace("dataset.json", '{"drawn"', '[], "boxe": {"drawn"'), [], "a `boxes` that is not an object"),
        (lambda root: (root / "labels.csv").unlink(), [], "labels.csv: not found"),
        (lambda root: None, ["--labels", "cough"], "no column 'cough'; it has ['image', 'patient_id', 'sex', 'tb'"),
        (lambda root: None, ["--boxes", "dots"], "no boxes 'dots'; choose --boxes one of ['drawn']"),
        (lambda root: None, ["--masks", "heart"], "no mask structure 'heart'"),
        (lambda root: None, ["--tasks", "dance"], "no annotations for task 'dance'"),
        (lambda root: None, ["--flip-pairs", "a-b"], "--flip-pairs: 'a-b'"),
        (lambda root: None, ["--flip-pairs", "a:b"], "flip_pairs names unknown classes"),
        (lambda root: None, ["--name", "chexpert"], "built-in dataset with other"),
        (_replace("labels.csv", "a,F,1,0", "a,F,2,0"), [], "image '0.png': column 'tb': '2' is not 1, 0, -1 or blank"),
        (_replace("labels.csv", "a,F,1,0", "a,F,1"), [], "row 2 has 4 cells"),
        (_replace("labels.csv", "1.png", "0.png"), [], "image '0.png' occurs twice"),
        (_replace("labels.csv", "2.png,c", "2.png,a"), [], "patient 'a' is in train and in test"),
        (_replace("labels.csv", "2.png,c", "2.png,"), [], "patient_id is blank"),
        (_replace("splits/test.txt", "2.png", "9.png"), [], "image '9.png' is not in"),
        (_replace("splits/test.txt", "2.png", ""), [], "the split is empty"),
        (_replace("splits/test.txt", "2.png", "2.png\n2.png"), [], "'2.png' occurs twice"),
        (_replace("splits/train.txt", "1.png", "2.png"), ["--tasks", "cls"], "'2.png' is in train and in test"),
        (lambda root: (root / "images" / "1.png").unlink(), [], "file not found, but labels.csv lists it\n"),
        (_rename("1.png", "1.PNG"), [], "1.png: image file not found, but labels.csv lists it; there is '1.PNG'"),
        (_rename("1.png", "1"), [], "1.png: image file not found, but labels.csv lists it\n"),
        (_replace("labels.csv", "1.png", "1"), [], "image '1.png' is not in"),
        (_replace("labels.csv", ",", ";"), [], "separated by commas: 'image;patient_id;"),
        (lambda root: (root / "images" / "1.png").write_text("x"), [], "1.png: not a complete PNG"),
        (_replace("masks_index.csv", "1.png", "7.png"), [], "image '7.png' is not in"),
        (_replace("masks_index.csv", "1.png,,,", "1.png,-1,,"), [], "-1 has no meaning for a mask"),
        (_same_stem, [], "images '0.png' and 'a/0.png' would share the mask file name 0.png"),
        (_big_mask, [], "the mask is 5 x 5, its image 30 x 20"),
        (lambda root: (root / "masks" / "left_lung" / "0.png").unlink(), [], "0.png: mask file cannot be read"),
        (_replace("boxes_train.json", "0.png", "8.png"), [], "'8.png' is not among the images of its split or table"),
        (_replace("boxes_train.json", '"images": [', '"images": [{"id": 5}, '), [], "not a COCO detection JSON"),
        (_twice("images", {"id": 6}), [], "boxes_train.json: '0.png' is the file_name of 2 images"),
        (_twice("images", {"file_name": "1.png"}), [], "boxes_train.json: 5 is the id of 2 images"),
        (_twice("categories", {"name": "flu"}), [], "boxes_train.json: 7 is the id of 2 categories"),
        (
            _replace("dataset.json", '"files": {"train', '"file": "x", "files": {"train'),
            [],
            "needs either `file`, or `files` by split",
        ),
        (_without("splits"), [], "`boxes.drawn` has `files` by split but there are no `splits`: give one `file`"),
        (_without("splits", "boxes"), ["--test-share", "0.9"], "src: shares of val and test must be 0 or more"),
        (lambda root: None, ["--test-share", "0.5"], "--test-share: there is already a test split"),
        (_replace("boxes_train.json", '"width": 30', '"width": 31'), [], "size (31, 20)"),
        (_replace("boxes_train.json", "[2, 3, 10, 9]", "[25, 3, 10, 9]"), [], "extends beyond its image"),
        (_bad_test_box, [], "extends beyond its image"),
        (_replace("boxes_train.json", "[2, 3, 10, 9]", "[2, 3]"), [], "bbox must be four numbers"),
        (_replace("boxes_train.json", '"category_id": 7', '"category_id": 8'), [], "no category with id 8"),
        (_replace("boxes_train.json", '"image_id": 5', '"image_id": 6'), [], "no image with id 6"),
        (_replace("boxes_train.json", '"name": "tb"', '"name": "flu"'), [], "categories ['flu'] are not those"),
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


def test_an_earlier_preparation_leaves_no_split(script: ModuleType, source: Path, tmp_path: Path) -> None:
    """Images of a split that is gone may be in another one now."""
    assert script.main([str(source), "--output", str(tmp_path / "out")]) == 0
    _replace("dataset.json", ', "test": "splits/test.txt"', "")(source)
    (source / "splits" / "train.txt").write_text("0.png\n2.png\n")
    assert script.main([str(source), "--output", str(tmp_path / "out"), "--tasks", "cls"]) == 0
    assert sorted(file.name for file in (tmp_path / "out" / "tiny").iterdir()) == ["dataset.yaml", "train.json"]


def test_splits_are_drawn_by_patient(script: ModuleType, tmp_path: Path) -> None:
    """Without lists: all films of the table, shares as asked for, boxes from one file; names as hospitals give them."""
    root = tmp_path / "src"
    (root / "images" / "Röntgen").mkdir(parents=True)
    names = [f"Röntgen/Müller {i:02d}.PNG" for i in range(30)]
    for name in names:
        cv2.imwrite(str(root / "images" / name), np.zeros((20, 30), np.uint8))
    rows = "".join(f"{name},Patient {i // 3},{i % 2}\n" for i, name in enumerate(names))
    (root / "labels.csv").write_text(f"image,patient_id,tb\n{rows}")
    images = [{"id": i, "file_name": name, "width": 30, "height": 20} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [i, 1, 1, 1]} for i in range(30)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "tb"}]}
    (root / "boxes.json").write_text(json.dumps(document))
    description = {
        "name": "tiny",
        "labels": {"columns": ["tb"]},
        "boxes": {"drawn": {"file": "boxes.json", "categories": ["tb"]}},
    }
    (root / "dataset.json").write_text(json.dumps(description))
    draws = []
    for seed, shares in ((0, []), (1, []), (0, ["--val-share", "0", "--test-share", "0.5"])):
        argv = [str(root), "--output", str(tmp_path / "out"), "--seed", str(seed), *shares]
        assert script.main(argv) == 0
        target = tmp_path / "out" / "tiny"
        dicts = {file.stem: load_split(file, load_spec(target), file.stem) for file in target.glob("*.json")}
        patients = {split: {x["patient_id"] for x in records} for split, records in dicts.items()}
        assert sum(map(len, patients.values())) == 10 and sum(map(len, dicts.values())) == 30
        for record in (x for records in dicts.values() for x in records):
            assert int(record["file_name"][-6:-4]) == record["annotations"][0]["bbox"][0]
        draws.append(patients)
    assert [{split: len(found) for split, found in draw.items()} for draw in draws] == [
        {"train": 7, "val": 1, "test": 2},
        {"train": 7, "val": 1, "test": 2},
        {"train": 5, "test": 5},
    ]
    assert draws[0] != draws[1]


def test_a_validation_split_is_drawn_from_train(script: ModuleType, source: Path, tmp_path: Path) -> None:
    """The test list stays what it is, and boxes stay with their images."""
    assert script.main([str(source), "--output", str(tmp_path / "out"), "--val-share", "0.5"]) == 0
    target = tmp_path / "out" / "tiny"
    dicts = {
        split: load_split(target / f"{split}.json", load_spec(target), split) for split in ("train", "val", "test")
    }
    names = {split: [Path(x["file_name"]).name for x in records] for split, records in dicts.items()}
    assert names["test"] == ["2.png"] and sorted(names["train"] + names["val"]) == ["0.png", "1.png"]
    assert {Path(x["file_name"]).name for y in dicts.values() for x in y if x["annotations"]} == {"0.png"}


def test_a_box_that_stands_twice_is_said(
    script: ModuleType, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is kept, as two readers may mean it."""
    _twice("annotations", {"id": 2})(source)
    assert script.main([str(source), "--output", str(tmp_path / "out")]) == 0
    assert "boxes_train.json: 1 boxes are duplicated in their image, first in '0.png'" in caplog.text
    _twice("annotations", {"id": 3, "bbox": [2, 3, 10, 8]})(source)
    assert script.main([str(source), "--output", str(tmp_path / "out")]) == 0
    assert "2 boxes" not in caplog.text


@pytest.mark.parametrize(
    ("listed", "stored"), [("Mu\u0308ller.png", "M\u00fcller.png"), ("0", "0.png"), ("0.PNG", "0.png")]
)
def test_a_name_spelled_otherwise_is_pointed_out(
    script: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: str, stored: str
) -> None:
    """Umlauts look alike in two Unicode forms, and tables leave endings out."""
    _rename("0.png", stored)(source)
    for file in ("labels.csv", "splits/train.txt"):
        _replace(file, "0.png", listed)(source)
    assert script.main([str(source), "--output", str(tmp_path / "out"), "--tasks", "cls"]) == 1
    assert f"labels.csv lists it; there is {stored!a}: write the name as the file has it" in capsys.readouterr().err


def test_several_kinds_of_boxes(script: ModuleType, source: Path, tmp_path: Path) -> None:
    """With two kinds of boxes, one must be chosen."""
    _replace("dataset.json", '"drawn":', '"second": {"files": {}, "categories": []}, "drawn":')(source)
    assert script.main([str(source), "--output", str(tmp_path / "out")]) == 1
    assert script.main([str(source), "--output", str(tmp_path / "out"), "--boxes", "drawn"]) == 0


@pytest.mark.skipif(not REAL.is_dir(), reason="the real chest X-ray folders are not on this machine")
@pytest.mark.parametrize(
    ("name", "train", "argv"),
    [
        ("jsrt", 134, ["--boxes", "boxes_nodule", "--name", "jsrt_small"]),
        ("nih14", 491, []),
        ("tbx11k", 315, ["--name", "tbx_small"]),
        ("covid_seg", 47, []),
        ("covid_cxr", 101, []),
    ],
)
def test_real_folders(script: ModuleType, tmp_path: Path, name: str, train: int, argv: list[str]) -> None:
    """The five real folders prepare, with the published number of training images."""
    assert script.main([str(REAL / name), "--output", str(tmp_path), *argv]) == 0
    (folder,) = tmp_path.iterdir()
    assert len(load_split(folder / "train.json", load_spec(folder), "train")) == train
