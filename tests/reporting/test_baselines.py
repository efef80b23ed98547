from __future__ import annotations

import json
from pathlib import Path

import pytest

from fx_d2.reporting.baselines import baseline_tables, methods, split_single
from fx_d2.reporting.comparison import Comparer
from fx_d2.reporting.paper import PaperRow, PaperTable, read_paper
from fx_d2.reporting.runs import read_runs
from fx_d2.reporting.tables import MEANS, Table

from .conftest import MakeRun, film_arrays

PAPER = read_paper(Path(__file__).resolve().parents[2] / "projects" / "FoundationX" / "paper.yaml")
ALL = ("cls", "loc", "seg")


def tables_of(*folders: Path, paper: tuple[PaperTable, ...] = PAPER) -> list[Table]:
    return baseline_tables(read_runs([str(folder) for folder in folders]), paper, Comparer(draws=50))


def row_of(table: Table, dataset: str, metric: str) -> dict[str, str]:
    rows = [dict(zip(table.columns, map(str, row), strict=True)) for row in table.rows]
    return next(row for row in rows if row["dataset"] == dataset and row["metric"] == metric)


@pytest.fixture
def joint(make_run: MakeRun) -> Path:
    metrics = {"student/siim_acr/cls/auroc": 0.9644, "teacher/siim_acr/cls/auroc": 0.97, "teacher/node21/loc/AP40": 0.3}
    metrics |= {"student/node21/loc/AP40": 0.25, "student/siim_acr/cls/images": 1372.0}
    intervals = {"student/siim_acr/cls/auroc": [0.95, 0.975]}
    return make_run("fx", ("node21", "siim_acr"), ALL, metrics, intervals=intervals, teacher=True)


def test_ours_beside_the_papers(make_run: MakeRun, joint: Path) -> None:
    single = make_run("one", ("siim_acr",), ("cls",), {"student/siim_acr/cls/auroc": 0.95})
    (table,) = tables_of(joint, single)
    assert table.title == "Pretraining: fx" and table.key == "pretraining" and len(table.rows) == 20
    row = row_of(table, "SIIM-ACR", "AUROC")
    assert row["baseline"] == "95.00" and row["student"] == "96.44 [95.0, 97.5]" and row["teacher"] == "97.00"
    assert row["difference"] == "+1.44 ↑" and row["images"] == "1372" and row["split"] == "test"
    assert row["paper: Baseline"] == "95.01" and row["paper: Foundation X"] == "96.44"
    assert row["paper: difference"] == "+1.43 ↑"
    assert row_of(table, "MIMIC-II (MIMIC-CXR)", "AUROC, published classes")["paper: difference"] == "-0.18 ↓"


def test_a_baseline_of_some_classes_has_a_row_of_its_own(make_run: MakeRun) -> None:
    key = "student/chestx_det/loc/AP40"
    joint = make_run("fx", ("chestx_det",), ALL, {key: 0.2, f"{key}/Nodule": 0.3}, teacher=True)
    single = make_run("one", ("chestx_det",), ("loc",), {key: 0.5, f"{key}/Nodule": 0.5}, classes=["Nodule"])
    (table,) = tables_of(joint, single)
    whole, part = row_of(table, "ChestX-Det", "AP40"), row_of(table, "ChestX-Det: Nodule", "AP40")
    assert (whole["baseline"], whole["student"]) == ("", "20.00") and whole["paper: Baseline"]
    assert (part["baseline"], part["student"], part["paper: Baseline"]) == ("50.00", "30.00", "")


def test_missing_cells_are_blank(joint: Path) -> None:
    (table,) = tables_of(joint)
    row = row_of(table, "NODE21", "AP40")
    assert (row["baseline"], row["student"], row["teacher"], row["difference"]) == ("", "25.00", "30.00", "")
    nothing = row_of(table, "CheXpert", "AUROC")
    assert not any(nothing[column] for column in ("split", "images", "baseline", "student", "teacher", "difference"))


def test_only_a_run_of_one_task_without_teacher_from_the_same_start_is_a_baseline(make_run: MakeRun) -> None:
    metrics = {"student/siim_acr/cls/auroc": 0.95}
    names = {"plain": {}, "ark": {"weights": "w/ark.pth"}, "taught": {"teacher": True}, "tuned": {"weights": "w/x.pth"}}
    folders = [make_run(name, ("siim_acr",), ("cls",), metrics, **facts) for name, facts in names.items()]
    folders.append(make_run("fx", ("siim_acr", "node21"), ALL, metrics, teacher=True, weights="w/ark.pth"))
    folders.append(make_run("heads", ("siim_acr",), ("cls",), metrics, heads=True))
    folders.append(make_run("few", ("siim_acr",), ("cls",), metrics, images=3))
    baselines, tuned = split_single(read_runs([str(folder) for folder in folders]), PAPER)
    assert [run.name for run in baselines] == ["plain", "ark"] and [run.name for run in tuned] == ["taught", "tuned"]


def test_a_published_table_of_starts_takes_all_runs_of_its_slot(make_run: MakeRun) -> None:
    run = make_run("plain", ("jsrt",), ("seg",), {"student/jsrt/seg/dice": 0.9})
    assert split_single(read_runs([str(run)]), PAPER)[0] == [] != split_single(read_runs([str(run)]), ())[0]


def test_repetitions_have_a_mean_and_other_methods_a_table(make_run: MakeRun) -> None:
    folders = []
    for name, seed, value, lr in (("a", 0, 0.8, 1e-4), ("b", 1, 0.9, 1e-4), ("c", 0, 0.7, 1e-3)):
        metrics = {"student/siim_acr/cls/auroc": value}
        folders.append(make_run(name, ("siim_acr", "node21"), ALL, metrics, seed=seed, lr=lr))
    tables = tables_of(*folders)
    assert [table.title for table in tables] == ["Pretraining: a and b", "Pretraining: c"]
    assert [table.key for table in tables] == ["pretraining", "pretraining_2"]
    assert row_of(tables[0], "SIIM-ACR", "AUROC")["student"] == "85.00 ± 7.07 (2)"
    assert [len(group) for group in methods(read_runs([str(folder) for folder in folders]))] == [2, 1]


def test_weights_that_are_evaluated_again_are_no_repetition(make_run: MakeRun) -> None:
    metrics = {"student/siim_acr/cls/auroc": 0.8}
    folders = [make_run(name, ("siim_acr", "node21"), ALL, metrics) for name in ("a", "b")]
    content = json.loads((folders[0] / "results.json").read_text())
    (folders[1] / "results.json").write_text(json.dumps(content))
    tables = tables_of(*folders)
    assert [table.title for table in tables] == ["Pretraining: a", "Pretraining: b"]
    assert row_of(tables[0], "SIIM-ACR", "AUROC")["student"] == "80.00"


def test_baselines_of_two_configs_are_not_mixed(make_run: MakeRun, joint: Path) -> None:
    metrics = {"student/siim_acr/cls/auroc": 0.95}
    singles = [make_run(f"s{lr}", ("siim_acr",), ("cls",), metrics, lr=lr) for lr in (1e-4, 1e-3)]
    (table,) = tables_of(joint, *singles)
    assert row_of(table, "SIIM-ACR", "AUROC")["baseline"] == "95.00"
    assert table.notes[-1] == "baselines left out (another config, or weights that are already counted): s0.001"


def test_a_baseline_began_where_the_joint_run_did(make_run: MakeRun) -> None:
    """Of two that there are; one from elsewhere is named."""
    values = {"random": (0.90, {}), "ark": (0.95, {"weights": "w/ark.pth"})}
    key = "student/siim_acr/cls/auroc"
    folders = [make_run(f"b_{n}", ("siim_acr",), ("cls",), {key: v}, **facts) for n, (v, facts) in values.items()]
    folders += [
        make_run(f"j_{name}", ("siim_acr", "node21"), ALL, {key: 0.97}, teacher=True, **facts)
        for name, (_, facts) in values.items()
    ]
    for name, table in zip(values, tables_of(*folders), strict=True):
        assert table.title == f"Pretraining: j_{name}"
        assert row_of(table, "SIIM-ACR", "AUROC")["baseline"] == f"{100 * values[name][0]:.2f}"
        assert not any("other initial weights" in note for note in table.notes)
    (alone,) = tables_of(folders[0], folders[3])
    assert row_of(alone, "SIIM-ACR", "AUROC")["baseline"] == "90.00"
    assert alone.notes[-1] == "baselines with other initial weights: b_random"


def test_organs_have_a_row_a_class(make_run: MakeRun) -> None:
    organs = make_run("organs", ("vindr_organs",), ("loc", "seg"), {"student/vindr_organs/loc/AP40/Heart": 0.88})
    (table,) = tables_of(organs)
    row = row_of(table, "VinDr-CXR organs (CheXmask): Heart", "AP40")
    assert table.key == "organs" and len(table.rows) == 6
    assert (row["student"], row["paper: Foundation X"]) == ("88.00", "88.41")


def test_datasets_of_ones_own_and_no_paper(make_run: MakeRun, joint: Path) -> None:
    own = make_run("own", ("films",), ("cls", "seg"), {"student/films/cls/auroc": 0.6, "student/films/seg/dice": 0.7})
    tables = tables_of(joint, own)
    assert [table.key for table in tables] == ["pretraining", "joint"]
    assert row_of(tables[1], "films", "Dice")["student"] == "70.00" and "paper: Baseline" not in tables[1].columns
    assert [len(table.rows) for table in tables_of(joint, paper=())] == [5]


def test_baselines_that_no_joint_run_has_a_row_for_have_a_table(make_run: MakeRun, joint: Path) -> None:
    names = {"own": ("films", "cls"), "organs": ("vindr_organs", "seg"), "in": ("siim_acr", "cls")}
    folders = [
        make_run(name, (dataset,), (task,), {f"student/{dataset}/{task}/{metric}": 0.6})
        for (name, (dataset, task)), metric in zip(names.items(), ("auroc", "network_dice/Heart", "auroc"), strict=True)
    ]
    tables = tables_of(joint, *folders)
    assert [(table.key, table.title.partition(": ")[2]) for table in tables] == [
        ("pretraining", "fx"),
        ("organs", "baselines only"),
        ("joint", "baselines only"),
    ]
    assert row_of(tables[1], "VinDr-CXR organs (CheXmask): Heart", "Dice, network pixels")["baseline"] == "60.00"
    assert len(tables[2].rows) == 1 and row_of(tables[2], "films", "AUROC")["baseline"] == "60.00"


def test_a_task_that_the_paper_lacks_is_in_the_other_table(make_run: MakeRun) -> None:
    row = PaperRow(dataset="films", task="cls", metric="auroc")
    paper = (PaperTable(key="p", title="P", kind="baselines", rows=(row,)),)
    metrics = {"student/films/cls/auroc": 0.6, "student/films/seg/dice": 0.7}
    tables = tables_of(make_run("own", ("films",), ("cls", "seg"), metrics), paper=paper)
    assert [[row[1] for row in table.rows] for table in tables] == [["AUROC"], ["Dice"]]


def test_tables_of_one_published_table_are_numbered_by_its_key(make_run: MakeRun) -> None:
    row = PaperRow(dataset="films", task="cls", metric="auroc")
    paper = tuple(
        PaperTable(key=key, title=title, kind="baselines", rows=(row,)) for key, title in ("pP", ("q", "P: q"))
    )
    metrics = {"student/films/cls/auroc": 0.6, "student/films/seg/dice": 0.7}
    folders = [make_run(f"r{lr}", ("films",), ("cls", "seg"), metrics, lr=lr) for lr in (1e-3, 1e-4)]
    keys = [table.key for table in tables_of(*folders, paper=paper)]
    assert keys == ["p", "q", "joint", "p_2", "q_2", "joint_2"]


def test_a_mean_over_seeds_is_explained_where_there_is_one(make_run: MakeRun, joint: Path) -> None:
    (alone,) = tables_of(joint)
    assert MEANS not in alone.notes
    singles = [make_run(f"s{i}", ("siim_acr",), ("cls",), {"student/siim_acr/cls/auroc": 0.9}, seed=i) for i in (0, 1)]
    (table,) = tables_of(joint, *singles)
    assert MEANS in table.notes and row_of(table, "SIIM-ACR", "AUROC")["baseline"] == "90.00 ± 0.00 (2)"


def test_other_numbers_of_images_are_seen(make_run: MakeRun, joint: Path) -> None:
    """DATASETS.LIMIT leaves the annotations, and thus their hash, as they are."""
    metrics = {"student/siim_acr/cls/auroc": 0.95, "student/siim_acr/cls/images": 100.0}
    (table,) = tables_of(joint, make_run("one", ("siim_acr",), ("cls",), metrics))
    assert row_of(table, "SIIM-ACR", "AUROC")["images"] == "100 / 1372"
    assert row_of(table, "NODE21", "AP40")["images"] == ""


def test_the_interval_of_a_difference_is_paired(make_run: MakeRun) -> None:
    folders = [
        make_run(
            f"r{i}",
            ("films",),
            tasks,
            {"student/films/cls/auroc": 0.5, "student/films/seg/dice": 0.5},
            scores={"student/films": film_arrays(i)},
        )
        for i, tasks in ((1, ("cls",)), (2, ("cls", "seg")))
    ]
    (table,) = tables_of(*folders, paper=())
    runs = read_runs([str(folder) for folder in folders])
    pair = Comparer(draws=50).on_split((runs[0], "student"), (runs[1], "student"), "films_test")["cls/auroc"]
    cell = table.rows[0][table.columns.index("difference")]
    assert cell.interval == pytest.approx((100 * pair.low, 100 * pair.high))
    assert table.rows[1][table.columns.index("difference")] == ""
    # Of a mean over two there is none.
    metrics = {"student/films/cls/auroc": 0.5}
    folders.append(make_run("r3", ("films",), ("cls",), metrics, scores={"student/films": film_arrays(3)}, seed=3))
    (table,) = tables_of(*folders, paper=())
    assert table.rows[0][table.columns.index("baseline")].runs == 2
    assert table.rows[0][table.columns.index("difference")].interval is None


def test_runs_that_are_not_evaluated_yet_are_blank(make_run: MakeRun, joint: Path) -> None:
    going = [make_run(f"r{i}", ("siim_acr",), ("cls",), seed=i) for i in range(2)]
    (method,) = methods(read_runs([str(folder) for folder in going]))
    assert [run.name for run in method] == ["r0", "r1"]
    (table,) = tables_of(joint, *going)
    row = row_of(table, "SIIM-ACR", "AUROC")
    assert (row["baseline"], row["student"], row["difference"]) == ("", "96.44 [95.0, 97.5]", "")


def test_what_has_no_pairs_has_no_interval(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    """Two runs on other images: both are shown, and the report goes on."""
    scores = [film_arrays(1), film_arrays(2, count=11)]
    metrics = {"student/films/cls/auroc": 0.5, "student/films/seg/dice": 0.5}
    folders = [
        make_run(f"r{i}", ("films",), tasks, metrics, scores={"student/films": scores[i]})
        for i, tasks in enumerate((("cls",), ("cls", "seg")))
    ]
    (table,) = tables_of(*folders, paper=())
    cell = table.rows[0][table.columns.index("difference")]
    assert cell.value == 0 and cell.interval is None
    assert "no interval for the difference" in caplog.text and "image_id differ" in caplog.text


def test_a_baseline_on_another_split_is_not_compared(make_run: MakeRun, joint: Path) -> None:
    single = make_run("one", ("siim_acr",), ("cls",), {"student/siim_acr/cls/auroc": 0.95}, split="val")
    assert row_of(tables_of(joint, single)[0], "SIIM-ACR", "AUROC")["baseline"] == ""
