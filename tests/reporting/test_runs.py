from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fx_d2.reporting.runs import dataset_of, read_runs
from fx_d2.structures import FXError

from .conftest import MakeRun

METRICS = {"student/jsrt/seg/dice": 0.5, "student/jsrt/seg/dice/Heart": None, "student/jsrt/seg/images": 9.0}


def test_a_training_with_its_test(make_run: MakeRun) -> None:
    line = {"iteration": 4, "cycle": 0, "pass": 0, "dataset": "jsrt", "task": "seg", "metrics": {}}
    make_run("run", ("jsrt",), ("seg",), METRICS, split="val", history=[line], steps=[{"iteration": 1, "lr": 0.1}])
    make_run("run/test", ("jsrt",), ("seg",), METRICS | {"student/jsrt/seg/dice": 0.6})
    (run,) = read_runs([str(make_run("again", ("jsrt",), ("seg",)).parent / "run")])
    assert run.name == "run" and run.results.value("student", "jsrt_test", "seg", "dice") == 0.6
    assert run.history == [line] and run.steps == [{"iteration": 1, "lr": 0.1}]
    assert math.isnan(run.results.value("student", "jsrt_test", "seg", "dice/Heart"))
    assert math.isnan(run.results.value("student", "jsrt_val", "seg", "dice"))
    assert run.results.classes("student", "jsrt_test", "seg", "dice") == ["Heart"]
    assert run.results.tasks("jsrt_test") == ["seg"] and run.results.models == ["student"]


def test_an_evaluation_finds_its_training(make_run: MakeRun) -> None:
    training = make_run("run", ("jsrt",), ("seg",), steps=[{"iteration": 1}], weights="ark.pth")
    folder = make_run("test", ("jsrt",), ("seg",), METRICS)
    for file in ("metrics.json",):
        (folder / file).unlink()
    content = json.loads((folder / "results.json").read_text())
    content["meta"]["weights"] = str(training / "model_final.pth")
    (folder / "results.json").write_text(json.dumps(content))
    (run,) = read_runs([f"own={folder}"])
    assert run.name == "own" and run.steps == [{"iteration": 1}] and run.recipe.start == "ark"


def test_names_are_the_shortest_that_differ_and_folders_of_runs_are_opened(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("a/test", "b/test"):
        make_run(name, ("jsrt",), ("seg",), METRICS)
    assert [run.name for run in read_runs([str(tmp_path / "a" / "test"), str(tmp_path / "b" / "test")])] == [
        "a/test",
        "b/test",
    ]
    assert [run.name for run in read_runs([str(tmp_path / "a")])] == ["test"]
    assert [run.name for run in read_runs([f"s={tmp_path / 'a'}"])] == ["s/test"]


def test_folders_called_by_a_setting_are_paths(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lr=0.1", "lr=0.2"):
        make_run(name, ("jsrt",), ("seg",), METRICS)
    monkeypatch.chdir(tmp_path)
    assert [run.name for run in read_runs(["lr=0.1", "high=lr=0.2"])] == ["lr=0.1", "high"]


def test_a_dataset_on_two_splits(make_run: MakeRun) -> None:
    folder = make_run("run", ("jsrt",), ("seg",), {"student/jsrt_val/seg/dice": 0.1, "student/jsrt_test/seg/dice": 0.2})
    content = json.loads((folder / "results.json").read_text())
    content["meta"] |= {"splits": ["jsrt_val", "jsrt_test"], "datasets": {}}
    (folder / "results.json").write_text(json.dumps(content))
    results = read_runs([str(folder)])[0].results
    assert results.value("student", "jsrt_val", "seg", "dice") == 0.1
    assert results.value("student", "jsrt_test", "seg", "dice") == 0.2
    assert dataset_of("jsrt_test") == "jsrt"


def test_a_line_cut_off_by_a_kill_is_left_out(make_run: MakeRun) -> None:
    folder = make_run("run", ("jsrt",), ("seg",), METRICS)
    (folder / "metrics.json").write_text('{"iteration": 1}\n{"itera')
    assert read_runs([str(folder)])[0].steps == [{"iteration": 1}]
    (folder / "metrics.json").write_text('{"itera\n{"iteration": 1}\n')
    with pytest.raises(FXError, match="metrics.json, line 1: not JSON"):
        read_runs([str(folder)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "has version 1, not 2: evaluate again"),
        ({"format": "other"}, "is not an fx_d2 results file"),
        ({"scores": None}, "has no scores"),
    ],
)
def test_results_of_another_kind_are_named(make_run: MakeRun, change: dict[str, Any], message: str) -> None:
    folder = make_run("run", ("jsrt",), ("seg",), METRICS, more=change)
    with pytest.raises(FXError, match=message):
        read_runs([str(folder)])


def test_what_is_no_run_and_what_cannot_stand_together(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(FXError, match="is not a run"):
        read_runs([str(tmp_path)])
    first = make_run("first", ("jsrt",), ("seg",), METRICS)
    with pytest.raises(FXError, match="is given twice"):
        read_runs([str(first), str(first)])
    other = make_run("other", ("jsrt",), ("seg",), METRICS, hashes={"jsrt_test": "anew"})
    with pytest.raises(FXError, match="different annotations of jsrt_test"):
        read_runs([str(first), str(other)])
    with pytest.raises(FXError, match="first is given twice"):
        read_runs([str(other), str(first), str(first)])
    with pytest.raises(FXError, match="two runs are named 'x'"):
        read_runs([f"x={first}", f"x={other}"])
    (other / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(FXError, match="other/config.yaml is not YAML"):
        read_runs([str(other)])
    (first / "results.json").write_text("{")
    with pytest.raises(FXError, match="is not JSON"):
        read_runs([str(first)])


def test_the_config_of_an_evaluation_without_its_file_is_in_its_results(make_run: MakeRun) -> None:
    folder = make_run("run", ("jsrt",), ("seg",), METRICS, weights="ark.pth")
    config = folder / "config.yaml"
    content = json.loads((folder / "results.json").read_text())
    content["meta"]["config"] = config.read_text()
    (folder / "results.json").write_text(json.dumps(content))
    config.unlink()
    assert read_runs([str(folder)])[0].recipe.start == "ark"
    (folder / "results.json").unlink()
    with pytest.raises(FXError, match="config.yaml"):
        read_runs([str(folder)])


def test_tasks_of_a_dataset_of_ones_own_are_those_that_were_evaluated(make_run: MakeRun) -> None:
    """The config does not tell: a row of the strategy passes over datasets that have not its task."""
    line = {"iteration": 4, "cycle": 0, "pass": 0, "dataset": "films", "task": "cls"}
    metrics = {"student/films/cls/auroc": 0.5}
    folders = [
        make_run("new", ("films",), ("cls", "seg")),
        make_run("tested", ("films",), ("cls", "seg"), {"student/films/seg/dice": 0.5}),
        make_run("going", ("films",), ("cls", "seg"), history=[line | {"metrics": metrics}]),
    ]
    slots = [run.recipe.slots for run in read_runs([str(folder) for folder in folders])]
    assert slots == [(("films", "cls"), ("films", "seg")), (("films", "seg"),), (("films", "cls"),)]
