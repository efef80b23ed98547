from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from fx_d2.evaluation import Evaluation, per_class_table, results_table, write_results
from fx_d2.structures import DatasetSpec

NAN = float("nan")
SPECS = (
    DatasetSpec(name="nih", title="NIH ChestX-ray14", cls_classes=("Hernia", "Nodule/Mass")),
    DatasetSpec(name="siim", title="SIIM-ACR", loc_classes=("ptx",), seg_classes=("ptx",)),
)
METRICS = {
    "teacher/siim/seg/dice": 0.83651,
    "student/siim/loc/AP40": 0.28564,
    "student/siim/loc/AP50": 0.2,
    "student/siim/loc/AP": 0.1,
    "student/siim/loc/AP75": 0.05,
    "student/siim/loc/AP40/ptx": 0.28564,
    "student/siim/loc/images": 120.0,
    "student/siim/seg/dice": 0.8192,
    "student/siim/seg/dice_positives": NAN,
    "student/nih/cls/auroc": 0.83054,
    "student/nih/cls/auroc/Hernia": NAN,
    "student/nih/cls/auroc/Nodule/Mass": 0.83054,
    "student/nih/cls/auroc_defined": 1.0,
    "teacher/nih/cls/auroc": 0.9,
    "teacher/nih/cls/auroc/Hernia": NAN,
    "teacher/nih/cls/auroc/Nodule/Mass": 0.9,
}
FOUND = Evaluation(METRICS, {"teacher/siim/seg/dice": (0.8, 0.87), "student/nih/cls/auroc": (NAN, NAN)})


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table_of_results() -> None:
    rows = cells(results_table(METRICS, SPECS))
    assert rows[0] == ["dataset", "task", "images", "metric", "student", "teacher"]
    assert rows[2:] == [
        ["NIH ChestX-ray14", "cls", "", "AUROC", "83.05", "90.00"],
        ["SIIM-ACR", "loc", "120", "AP40", "28.56", ""],
        ["SIIM-ACR", "loc", "120", "AP50", "20.00", ""],
        ["SIIM-ACR", "loc", "120", "AP (.50:.95)", "10.00", ""],
        ["SIIM-ACR", "seg", "", "Dice", "81.92", "83.65"],
        ["SIIM-ACR", "seg", "", "Dice, positives", "", ""],
    ]


def test_intervals_stand_behind_their_values() -> None:
    rows = cells(results_table(METRICS, SPECS, FOUND.intervals))
    assert rows[2][-2:] == ["83.05", "90.00"] and rows[-2][-2:] == ["81.92", "83.65 [80.0, 87.0]"]


def test_undefined_classes_are_named_below_the_table() -> None:
    notes = [line for line in results_table(METRICS, SPECS).splitlines() if line.startswith("- ")]
    assert len(notes) == 1
    assert notes[0].startswith("- NIH ChestX-ray14, cls: undefined") and notes[0].endswith(": Hernia")
    plain = results_table({"student/nih/cls/auroc": 0.5}, SPECS)
    assert "- " not in plain.splitlines()[-1][:2] and not plain.endswith("\n")
    # Of one model, or of one of two, is enough.
    alone = {key: value for key, value in METRICS.items() if key.startswith("student")}
    for metrics in (alone, METRICS | {"teacher/nih/cls/auroc/Hernia": 0.5}):
        assert results_table(metrics, SPECS).endswith(": Hernia")


def test_undefined_classes_of_a_model_of_any_name_are_listed() -> None:
    table = results_table({"mine/films/seg/dice": 0.5, "mine/films/seg/dice/lung": float("nan")}, ())
    assert table.endswith("- films, seg: undefined (no annotated image), not in the mean: lung")


def test_table_per_class() -> None:
    rows = cells(per_class_table(METRICS, SPECS))
    assert rows[2:] == [
        ["NIH ChestX-ray14", "cls", "AUROC", "Hernia", "", ""],
        ["NIH ChestX-ray14", "cls", "AUROC", "Nodule/Mass", "83.05", "90.00"],
        ["SIIM-ACR", "loc", "AP40", "ptx", "28.56", ""],
    ]


def test_one_model_has_one_column_and_strange_datasets_come_last() -> None:
    metrics = {"student/zzz/cls/auroc": 0.5, "student/nih_val/cls/auroc": 0.6, "student/nih_test/cls/auroc": 0.7}
    rows = cells(results_table(metrics, SPECS))
    assert rows[0][-1] == "student"
    assert [row[0] for row in rows[2:]] == ["NIH ChestX-ray14 (val)", "NIH ChestX-ray14 (test)", "zzz"]


def test_a_bar_in_a_name_divides_no_cell() -> None:
    assert "| a\\|b " in per_class_table({"student/nih/cls/auroc/a|b": 0.5}, SPECS)


def test_no_metrics_give_an_empty_table() -> None:
    assert "dataset" in results_table({}, SPECS) and "class" in per_class_table({}, SPECS)


def test_results_on_disk(tmp_path: Path) -> None:
    meta = {
        "config": "A: 1\nB:\n  C: 2\n",
        "command": "train_net.py --eval-only",
        "seed": 3,
        "versions": {"torch": "2"},
    }
    report = write_results(tmp_path / "new" / "results.json", FOUND, meta, SPECS)
    content = json.loads((tmp_path / "new" / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["meta"] == meta
    assert content["metrics"]["student/nih/cls/auroc/Hernia"] is None
    assert content["metrics"]["student/siim/seg/dice"] == 0.8192
    assert content["metrics"].keys() == METRICS.keys()
    text = report.read_text()
    assert report.name == "results.md"
    assert content["intervals"] == {"teacher/siim/seg/dice": [0.8, 0.87], "student/nih/cls/auroc": [None, None]}
    assert set(content) == {"format", "version", "meta", *(entry.name for entry in fields(Evaluation))}
    for part in (
        "Research use only",
        results_table(METRICS, SPECS, FOUND.intervals),
        per_class_table(METRICS, SPECS),
        "--eval-only",
        "    A: 1\n    B:\n      C: 2\n",
    ):
        assert part in text
    assert sorted(path.name for path in report.parent.iterdir()) == ["results.json", "results.md"]
