from __future__ import annotations

import math
from pathlib import Path

import pytest

from fx_d2.reporting.baselines import OTHERS, title_of
from fx_d2.reporting.paper import read_paper
from fx_d2.reporting.runs import read_runs
from fx_d2.reporting.tables import Table
from fx_d2.reporting.transfer import transfer_tables

from .conftest import MakeRun

PAPER = read_paper(Path(__file__).resolve().parents[2] / "projects" / "FoundationX" / "paper.yaml")


def tables_of(folders: list[Path]) -> list[Table]:
    return transfer_tables(read_runs([str(folder) for folder in folders]), PAPER)


def rows_of(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.columns, map(str, row), strict=True)) for row in table.rows]


def jsrt(value: float) -> dict[str, float]:
    return {f"student/jsrt/seg/network_dice/{name}": value for name in ("Heart", "Lungs", "Clavicles")}


def test_fine_tuning_has_a_column_a_start(make_run: MakeRun) -> None:
    starts = {"a": "w/ark.pth", "f": "output/fx/model_final.pth", "r": ""}
    folders = [
        make_run(name, ("jsrt",), ("seg",), jsrt(value), weights=weights)
        for (name, weights), value in zip(starts.items(), (0.94, 0.95, 0.80), strict=True)
    ]
    (table,) = tables_of(folders)
    heart = rows_of(table)[0]
    assert heart["dataset"] == "JSRT (SCR): Heart" and len(table.rows) == 3
    assert (heart["from ark"], heart["from fx"], heart["from random"]) == ("94.00", "95.00", "80.00")
    assert (heart["paper: Ark"], heart["paper: POPAR"], heart["paper: Foundation X"]) == ("94.62", "94.64", "95.42")


def test_a_run_for_each_class_fills_the_row_of_its_class(make_run: MakeRun) -> None:
    """As tools/run_series.py --grid DATASETS.CLASSES leaves them."""
    folders = [
        make_run(name, ("jsrt",), ("seg",), {f"student/jsrt/seg/network_dice/{name}": value}, lr=1e-4 + i)
        for i, (name, value) in enumerate({"Heart": 0.9, "Lungs": 0.8, "Clavicles": 0.7}.items())
    ]
    (table,) = tables_of(folders)
    assert [row["from random"] for row in rows_of(table)] == ["90.00", "80.00", "70.00"]
    assert not any("left out" in note for note in table.notes)


def test_a_mean_of_some_classes_is_not_the_datasets(make_run: MakeRun) -> None:
    whole = {"student/films/seg/dice": 0.8, "student/films/seg/dice/lung": 0.9, "student/films/seg/dice/heart": 0.7}
    part = {"student/films/seg/dice": 0.95, "student/films/seg/dice/lung": 0.95}
    folders = [
        make_run("whole", ("films",), ("seg",), whole, weights="a.pth"),
        make_run("part", ("films",), ("seg",), part, weights="b.pth", classes=["lung"]),
    ]
    (table,) = tables_of(folders)
    found = {row["dataset"]: (row["from a"], row["from b"]) for row in rows_of(table)}
    assert found == {"films": ("80.00", ""), "films: lung": ("90.00", "95.00")}
    (alone,) = tables_of(folders[1:])
    assert [row["dataset"] for row in rows_of(alone)] == ["films: lung"]
    heads = [make_run("h", ("films",), ("seg",), part, weights="a.pth", classes=["lung"], heads=True), folders[0]]
    row = rows_of(tables_of(heads)[-1])[0]
    assert (row["dataset"], row["heads only"], row["full"]) == ("films: lung", "95.00", "90.00")


def test_published_columns_without_a_number_are_left_out(make_run: MakeRun) -> None:
    own = make_run("own", ("films",), ("cls",), {"student/films/cls/auroc": 0.6}, weights="output/fx/model_final.pth")
    heads = make_run("heads", ("films",), ("cls",), {"student/films/cls/auroc": 0.6}, heads=True)
    assert [c for table in tables_of([own, heads]) for c in table.columns if "paper" in c] == []
    ribs = make_run("r", ("vindr_ribcxr",), ("seg",), {"student/vindr_ribcxr/seg/network_dice": 0.7}, weights="ark.pth")
    assert sum("paper" in column for column in tables_of([own, ribs])[0].columns) == 3


def test_few_shot_has_mean_deviation_and_count_of_seeds(make_run: MakeRun) -> None:
    values = {6: (0.80, 0.83, 0.86), 3: (0.70,), 5: (0.75, 0.75)}
    folders = [
        make_run(f"n{n}s{i}", ("jsrt",), ("seg",), jsrt(value), images=n, draw=i, weights="w/ark.pth")
        for n, seeds in values.items()
        for i, value in enumerate(seeds)
    ]
    (table,) = tables_of(folders)
    rows = {row["training images"]: row for row in rows_of(table)}
    assert list(rows) == ["24", "20", "15", "12", "6", "5", "3"]  # the paper's and ours, largest first
    assert rows["6"]["from ark"] == "83.00 ± 3.00 (3)" and rows["6"]["paper: Foundation X"] == "83.03"
    assert rows["3"]["from ark"] == "70.00" and rows["24"]["from ark"] == "" and rows["5"]["paper: Ark"] == ""
    assert rows["5"]["from ark"] == "75.00 ± 0.00 (2)" and rows["5"]["dataset"] == "JSRT (SCR): Clavicles"
    cell = table.rows[4][table.columns.index("from ark")]
    assert cell.deviation == pytest.approx(math.sqrt((9 + 0 + 9) / 2)) and cell.runs == 3


def test_classes_that_the_paper_lacks_have_a_row(make_run: MakeRun) -> None:
    """The paper's few-shot table is about clavicles: a run of hearts is seen all the same."""
    key = "student/jsrt/seg/network_dice"
    folders = [make_run(f"h{i}", ("jsrt",), ("seg",), {f"{key}/Heart": 0.9}, images=3, draw=i, lr=1e-3) for i in (0, 1)]
    folders.append(make_run("c", ("jsrt",), ("seg",), {f"{key}/Clavicles": 0.7}, images=3))
    rows = {row["dataset"]: row for row in rows_of(tables_of(folders)[0]) if row["training images"] == "3"}
    assert rows["JSRT (SCR): Heart"]["from random"] == "90.00 ± 0.00 (2)"
    assert rows["JSRT (SCR): Heart"]["paper: Ark"] == "" != rows["JSRT (SCR): Clavicles"]["paper: Ark"]
    assert rows["JSRT (SCR): Clavicles"]["from random"] == "70.00" and len(rows) == 2


def test_runs_of_another_config_are_not_averaged(make_run: MakeRun) -> None:
    folders = [
        make_run(f"s{lr}", ("jsrt",), ("seg",), jsrt(0.9), images=3, draw=i, lr=lr) for i, lr in enumerate((1e-4, 1e-3))
    ]
    (table,) = tables_of(folders)
    assert rows_of(table)[-1]["from random"] == "90.00" and table.notes[-1] == f"left out {OTHERS}: s0.001"


def test_heads_only_against_all_of_the_model(make_run: MakeRun) -> None:
    key, start = "student/vindr_local/loc/AP40", {"weights": "output/fx/model_final.pth"}
    folders = [
        make_run("h", ("vindr_local",), ("loc",), {key: 0.14}, heads=True, **start),
        make_run("f", ("vindr_local",), ("loc",), {key: 0.155}, **start),
        make_run("b", ("vindr_local",), ("loc",), {key: 0.12}),
    ]
    table = next(table for table in tables_of(folders) if table.key == "heads_only")
    (row,) = rows_of(table)
    assert (row["baseline"], row["heads only"], row["full"]) == ("12.00", "14.00", "15.50")
    assert row["full - heads only"] == "+1.50 ↑" and row["paper: heads only"] == "14.30"
    assert table.title.endswith("from fx") and len(table.notes) == 1
    folders.append(make_run("c", ("vindr_local",), ("loc",), {key: 0.16}, lr=1e-3, **start))
    table = next(table for table in tables_of(folders) if table.key == "heads_only")
    assert rows_of(table)[0]["full"] == "15.50" and table.notes[-1] == f"left out {OTHERS}: c"


def test_a_fine_tuning_from_elsewhere_is_no_baseline_of_heads(make_run: MakeRun) -> None:
    key = "student/vindr_local/loc/AP40"
    starts = {name: {"weights": f"output/{name}/model_final.pth"} for name in ("fx", "other")}
    folders = [
        make_run(f"{name}_{heads}", ("vindr_local",), ("loc",), {key: value + heads / 100}, heads=heads, **facts)
        for (name, facts), value in zip(starts.items(), (0.1, 0.2), strict=True)
        for heads in (False, True)
    ]
    tables = [table for table in tables_of(folders) if table.key.startswith("heads_only")]
    assert [rows_of(table)[0]["full"] for table in tables] == ["10.00", "20.00"]
    assert [rows_of(table)[0]["heads only"] for table in tables] == ["11.00", "21.00"]
    assert [rows_of(table)[0]["baseline"] for table in tables] == ["", ""]


def test_heads_stand_beside_the_fine_tuning_of_their_own_task(make_run: MakeRun) -> None:
    start = {"weights": "output/fx/model_final.pth"}
    slots = (("vindr_local", "loc", "AP40", 0.1), ("jsrt", "seg", "dice", 0.8))
    folders = [
        make_run(f"{name}_{heads}", (name,), (task,), {f"student/{name}/{task}/{metric}": value}, heads=heads, **start)
        for name, task, metric, value in slots
        for heads in (True, False)
    ]
    table = next(table for table in tables_of(folders) if table.key == "heads_only")
    both = {row["dataset"]: (row["heads only"], row["full"]) for row in rows_of(table) if row["heads only"]}
    assert both[title_of("vindr_local")] == ("10.00", "10.00")
    assert table.notes[-1].count("left out") == 0  # the other task's run is no rival


def test_rows_come_in_the_order_of_the_runs(make_run: MakeRun) -> None:
    names = ["vindr_ribcxr", "siim_acr", "jsrt", "candid_ptx", "nih_montgomery", "chestx_det"]
    folders = [
        make_run(name, (name,), ("seg",), {f"student/{name}/seg/dice": 0.5}, weights="output/fx/model_final.pth")
        for name in names
    ]
    (table,) = tables_of(folders)
    assert list(dict.fromkeys(row[0].partition(":")[0] for row in table.rows)) == [title_of(name) for name in names]


def test_no_such_runs_no_tables(make_run: MakeRun) -> None:
    assert tables_of([make_run("fx", ("node21", "siim_acr"), ("cls",), {"student/node21/cls/auroc": 0.5})]) == []
