"""A plain folder becomes a dataset. What is refused: test_folder_faults.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from fx_d2.data.annotations import load_spec, load_split
from fx_d2.data.cache import read_record, resize_image
from fx_d2.data.masks import decode_masks

from .folder_changes import rename_image, repeat_row, replace_text

PROJECT = Path(__file__).parents[2]
REAL = PROJECT.parent / "shared" / "data"


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


def test_an_earlier_preparation_leaves_no_split(script: ModuleType, source: Path, tmp_path: Path) -> None:
    """Images of a split that is gone may be in another one now."""
    assert script.main([str(source), "--output", str(tmp_path / "out")]) == 0
    replace_text("dataset.json", ', "test": "splits/test.txt"', "")(source)
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
    repeat_row("annotations", {"id": 2})(source)
    assert script.main([str(source), "--output", str(tmp_path / "out")]) == 0
    assert "boxes_train.json: 1 boxes are duplicated in their image, first in '0.png'" in caplog.text
    repeat_row("annotations", {"id": 3, "bbox": [2, 3, 10, 8]})(source)
    assert script.main([str(source), "--output", str(tmp_path / "out")]) == 0
    assert "2 boxes" not in caplog.text


@pytest.mark.parametrize(
    ("listed", "stored"), [("Mu\u0308ller.png", "M\u00fcller.png"), ("0", "0.png"), ("0.PNG", "0.png")]
)
def test_a_name_spelled_otherwise_is_pointed_out(
    script: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: str, stored: str
) -> None:
    """Umlauts look alike in two Unicode forms, and tables leave endings out."""
    rename_image("0.png", stored)(source)
    for file in ("labels.csv", "splits/train.txt"):
        replace_text(file, "0.png", listed)(source)
    assert script.main([str(source), "--output", str(tmp_path / "out"), "--tasks", "cls"]) == 1
    assert f"labels.csv lists it; there is {stored!a}: write the name as the file has it" in capsys.readouterr().err


def test_several_kinds_of_boxes(script: ModuleType, source: Path, tmp_path: Path) -> None:
    """With two kinds of boxes, one must be chosen."""
    replace_text("dataset.json", '"drawn":', '"second": {"files": {}, "categories": []}, "drawn":')(source)
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
