"""The common part of the preparation scripts, on a release of five tiny images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fx_d2.data.annotations import load_spec
from fx_d2.data.preparation import Case, Options, Plan, make_parser, prepare, relative_root, run
from fx_d2.structures import DatasetSpec, FXError

SPEC = DatasetSpec(name="small", title="Small", cls_classes=("a",), loc_classes=("a",), source="a drawer")


def annotate(label: Any, shape: tuple[int, int]) -> dict[str, Any]:
    if label == "broken":
        raise FXError("the label is broken")
    return {"labels": [label], "boxes": [("a", [0, 0, shape[1], shape[0]])] if label else []}


MakePlan = Callable[..., Plan]


@pytest.fixture
def make_plan(tmp_path: Path) -> MakePlan:
    root = tmp_path / "release"
    (root / "images").mkdir(parents=True)
    for i in range(5):
        cv2.imwrite(str(root / "images" / f"{i}.png"), np.full((8, 6 + i), 40 * i, np.uint8))

    def make(splits: str = "", labels: tuple[Any, ...] = (0, 1, 0, 1, 0), spec: DatasetSpec = SPEC) -> Plan:
        names = {"t": "train", "v": "val", "e": "test"}
        cases = [
            Case(
                image=root / "images" / f"{i}.png",
                patient_id=f"p{i}",
                split=names[splits[i]] if splits else "",
                study_id=f"s{i}",
                annotation=labels[i],
                meta={"age": i},
            )
            for i in range(5)
        ]
        return Plan(spec=spec, root=root, cases=cases, annotate=annotate, release="1.0", note="labels as drawn")

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_a_plan_says_is_written(make_plan: MakePlan, tmp_path: Path, workers: int) -> None:
    target, splits = prepare(make_plan("ttvee"), Options(output=tmp_path / "out", workers=workers))
    assert target == tmp_path / "out" / "small" and load_spec(target) == SPEC
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "val": 1, "test": 2}
    second = splits["train"][1]
    assert second["file_name"] == str(tmp_path / "release" / "images" / "1.png")
    assert (second["height"], second["width"], second["labels"]) == (8, 7, [1])
    assert second["annotations"][0]["bbox"] == [0, 0, 7, 8]
    assert (second["patient_id"], second["study_id"], second["meta"]) == ("p1", "s1", {"age": 1})
    info = json.loads((target / "val.json").read_text())["info"]
    assert info["source"] == "a drawer; labels as drawn" and info["release"] == "1.0"


def test_without_splits_patients_are_drawn(make_plan: MakePlan, tmp_path: Path) -> None:
    options = Options(output=tmp_path / "out", val_share=0.2, test_share=0.4)
    _, splits = prepare(make_plan(), options)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "val": 1, "test": 2}
    assert prepare(make_plan(), options)[1] == splits


def test_a_share_of_the_official_train_split_becomes_val(make_plan: MakePlan, tmp_path: Path) -> None:
    _, splits = prepare(make_plan("tttee"), Options(output=tmp_path / "out", val_share=0.34))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "val": 1, "test": 2}
    assert {row["patient_id"] for row in splits["test"]} == {"p3", "p4"}
    with pytest.raises(FXError, match="--test-share: there is already a test split"):
        prepare(make_plan("tttee"), Options(output=tmp_path / "out", test_share=0.2))


def test_lists_of_ones_own_decide(make_plan: MakePlan, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "test.txt").write_text("3.png 1\nimages/0.png\n")
    (tmp_path / "train.txt").write_text("2\n")
    _, splits = prepare(make_plan("ttttt"), Options(output=tmp_path / "out", splits=tmp_path))
    assert [row["patient_id"] for row in splits["test"]] == ["p3", "p0"]
    assert [row["patient_id"] for row in splits["train"]] == ["p2"] and "2 of 5 images" in caplog.text
    caplog.clear()
    (tmp_path / "train.txt").write_text("1\n2\n4\n")
    prepare(make_plan("ttttt"), Options(output=tmp_path / "out", splits=tmp_path))
    assert not caplog.text
    (tmp_path / "val.txt").write_text("9\n")
    with pytest.raises(FXError, match="image '9': is not in the release"):
        prepare(make_plan(), Options(output=tmp_path / "out", splits=tmp_path))


def test_a_limit_keeps_some_of_every_split(make_plan: MakePlan, tmp_path: Path) -> None:
    _, splits = prepare(make_plan("tttee"), Options(output=tmp_path / "out", limit=1))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1, "test": 1}


def test_a_split_of_an_earlier_preparation_is_removed(make_plan: MakePlan, tmp_path: Path) -> None:
    target, _ = prepare(make_plan("ttvee"), Options(output=tmp_path / "out"))
    prepare(make_plan("tttee"), Options(output=tmp_path / "out"))
    assert sorted(path.name for path in target.iterdir()) == ["dataset.yaml", "test.json", "train.json"]


def test_copies_are_made_and_a_broken_image_is_found(make_plan: MakePlan, tmp_path: Path) -> None:
    file = tmp_path / "release" / "images" / "4.png"
    file.write_bytes(file.read_bytes()[:-20])
    options = Options(output=tmp_path / "out", cache_size=4, skip_bad=True)
    target, splits = prepare(make_plan("ttvee"), options)
    assert [len(rows) for rows in splits.values()] == [2, 1, 1]
    record = splits["train"][1]
    assert record["file_name"] == str(target / "cache_4" / "images" / "1.png")
    assert (record["height"], record["width"], record["stored_size"]) == (8, 7, [5, 4])
    assert cv2.imread(record["file_name"], cv2.IMREAD_UNCHANGED).shape == (5, 4)
    with pytest.raises(FXError, match=r"4\.png: .*--skip-bad"):
        prepare(make_plan("ttvee"), Options(output=tmp_path / "again", cache_size=4))


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_truncated_image_is_found_when_asked_for(make_plan: MakePlan, tmp_path: Path, dry_run: bool) -> None:
    file = tmp_path / "release" / "images" / "4.png"
    file.write_bytes(file.read_bytes()[:-20])
    plan, options = make_plan("ttvee"), Options(output=tmp_path / "out", verify=True, dry_run=dry_run)
    with pytest.raises(FXError, match=r"4\.png: truncated PNG"):
        prepare(plan, options)
    _, splits = prepare(plan, replace(options, skip_bad=True))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert len(prepare(plan, replace(options, verify=False))[1]["test"]) == 2


def test_what_was_interrupted_goes_on_and_ends_the_same(make_plan: MakePlan, tmp_path: Path) -> None:
    """No annotation file before the end; copies that are there are kept; the end is that of a run in one go."""
    options = Options(output=tmp_path / "out", cache_size=4)
    seen = []

    def stop(label: Any, shape: tuple[int, int]) -> dict[str, Any]:
        seen.append(shape)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return annotate(label, shape)

    with pytest.raises(KeyboardInterrupt):
        prepare(replace(make_plan("ttvee"), annotate=stop), options)
    copies = sorted((tmp_path / "out").rglob("*.png"))
    assert len(copies) == 3 and not list((tmp_path / "out").rglob("*.json"))
    times = [file.stat().st_mtime_ns for file in copies]
    prepare(make_plan("ttvee"), options)
    assert [file.stat().st_mtime_ns for file in copies] == times
    prepare(make_plan("ttvee"), Options(output=tmp_path / "whole", cache_size=4))
    contents = [
        {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (tmp_path / "out", tmp_path / "whole")
    ]
    assert len(contents[0]) == 9 and contents[0] == contents[1]


def test_a_dry_run_writes_nothing(make_plan: MakePlan, tmp_path: Path) -> None:
    target, splits = prepare(make_plan("ttvee"), Options(output=tmp_path / "out", dry_run=True, cache_size=4))
    assert target == tmp_path / "out" / "small" and len(splits["train"]) == 2
    assert not (tmp_path / "out").exists()


def test_a_bad_image_stops_everything_or_is_left_out(
    make_plan: MakePlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "release" / "images" / "2.png").unlink()
    plan = make_plan("ttvee", (0, "broken", 0, 1, 0))
    with pytest.raises(FXError, match=r"images/1\.png: the label is broken \(--skip-bad"):
        prepare(plan, Options(output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    _, splits = prepare(plan, Options(output=tmp_path / "out", skip_bad=True))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1, "test": 2}
    assert "images/2.png" in caplog.text and "skipped 2 of 5 images" in caplog.text


def test_a_patient_in_two_splits_and_other_classes_are_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    """Before an image is looked at."""
    plan = make_plan("ttvee", ("broken",) * 5)
    plan = replace(plan, cases=[replace(case, patient_id="one") for case in plan.cases])
    with pytest.raises(FXError, match="patient 'one' is in train and in val"):
        prepare(plan, Options(output=tmp_path / "out"))
    other = DatasetSpec(name="node21", title="N", cls_classes=("a",), loc_classes=("a",))
    with pytest.raises(FXError, match="is a built-in dataset with other cls classes"):
        prepare(make_plan("ttvee", spec=other), Options(output=tmp_path / "out"))


@pytest.mark.parametrize("option", ["limit", "cache_size"])
def test_negative_options_are_refused(make_plan: MakePlan, tmp_path: Path, option: str) -> None:
    """A limit of -1 dropped the last image of each split."""
    with pytest.raises(FXError, match=f"--{option.replace('_', '-')} is -1; it must be 0 or more"):
        prepare(make_plan("ttvee"), Options(output=tmp_path / "out", **{option: -1}))
    assert not (tmp_path / "out").exists()


def test_images_inside_the_root_are_named_relatively(tmp_path: Path) -> None:
    target = tmp_path / "prepared" / "small"
    assert relative_root(tmp_path / "prepared" / "raw" / "small", target) == "../raw/small"
    assert relative_root(tmp_path / "raw", target) == str(tmp_path / "raw")


def test_the_command_line_reports_counts_or_one_line(
    make_plan: MakePlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(args: argparse.Namespace) -> Plan:
        if args.source != tmp_path:
            raise FXError("wrong folder")
        return make_plan("ttvee")

    common = ["--output", str(tmp_path / "out"), "--workers", "0"]
    assert run(make_parser("Doc"), plan, [str(tmp_path), *common, "--dry-run"]) == 0
    assert "nothing written" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert run(make_parser("Doc"), plan, [str(tmp_path), *common]) == 0
    assert "split small_train" in capsys.readouterr().out
    assert run(make_parser("Doc"), plan, ["elsewhere", *common]) == 1
    assert capsys.readouterr().err == "error: wrong folder\n"
    (tmp_path / "file").write_text("")
    assert run(make_parser("Doc"), plan, [str(tmp_path), "--output", str(tmp_path / "file"), "--workers", "0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'file'}") and error.count("\n") == 1
