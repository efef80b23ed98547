from __future__ import annotations

from dataclasses import replace

from fx_d2.reporting.run_sections import (
    classes_section,
    curves_section,
    groups_section,
    heads_section,
    protocol,
    protocol_section,
    training_section,
)
from fx_d2.reporting.runs import read_runs

from .conftest import MakeRun

KEY = "student/films/cls"


def test_what_is_said_about_a_run(make_run: MakeRun) -> None:
    metrics = {
        f"{KEY}/auroc": 0.7,
        f"{KEY}/auroc/a": 0.7,
        f"{KEY}/auroc/b": None,
        f"{KEY}/ece/a": 0.1,
        f"{KEY}/ece/b": 0.2,
    }
    bins = {"images": [2.0, 0.0], "score": [0.2, None], "positive": [0.5, None]}
    group = {"images": 5, "patients": 4, "metrics": {"cls/auroc": 0.6}}
    head = {"auroc": 0.55, "own_cut": 0.5, "other_cut": 0.5, "both": 1, "own_only": 2, "other_only": 3, "neither": 4}
    details = {
        KEY: {"reliability": {"a": bins}},
        "student/films/loc": {"froc": {"n": {"false_positives": [0.0, 1.0], "sensitivity": [0.0, 1.0]}}},
        "student/films/heads": {"a": {"images": 10, "own_auroc": 0.7, "heads": {"chexpert": head}}},
    }
    more = {"details": details, "subgroups": {"student/films": {"sex=F": group}}}
    steps = [{"iteration": i, "films/cls/total_loss": 1.0, "time": 0.1 * i, "data_time": 0.01} for i in (1, 2, 3)]
    steps.append({"iteration": 4, "films/cls/total_loss": 1.0})
    steps.append({"iteration": 5, "films/cls/total_loss": 1.0, "time": 9.0, "films/cls/step_time": 0.2})
    (run,) = read_runs([str(make_run("run", ("films",), ("cls",), metrics, more=more, steps=steps))])

    (table,) = classes_section(run, run.results).tables
    assert [list(map(str, row)) for row in table.rows] == [
        ["films", "test", "student", "a", "70.00", "10.00"],
        ["films", "test", "student", "b", "", "20.00"],
    ]
    assert table.notes[-1] == "films_test, student: undefined (needs positive and negative labels), not in means: b"
    curves = curves_section(run, run.results).parts
    assert [len(part.plots) for part in curves] == [1, 1] and curves[0].text == ()
    assert "films, test" in curves[0].plots[0].alt and "films, test" in curves[1].plots[0].alt
    assert list(map(str, groups_section(run, run.results).tables[0].rows[0])) == [
        "films", "test", "student", "sex=F", "5", "4", "60.00", "", ""]  # fmt: skip
    assert list(map(str, heads_section(run, run.results).tables[0].rows[0])) == [
        "films", "test", "student", "a", "10", "70.00", "CheXpert", "55.00", "1", "2", "3", "4"]  # fmt: skip
    times = training_section(run).parts[1].tables[0]
    assert list(map(str, times.rows[0])) == ["films", "cls", "4", "0.200", "0.010"]
    facts = protocol(run)
    assert facts["dataset_hash"] == {"films_test": "sha256:films_test"} and facts["splits"] == "films_test"
    assert "BASE_LR: 0.0001" in protocol_section(run).parts[0].code


def test_what_a_number_stands_for_is_said(make_run: MakeRun) -> None:
    metrics = {f"{KEY}/auroc/a": 0.7, f"{KEY}/sensitivity/a": 0.2, "student/films/loc/AP40/n": 0.3}
    metrics |= {"student/films/loc/froc/n": 0.4}
    details = {"student/films/loc": {"froc": {"n": {"false_positives": [0.0, 1.0], "sensitivity": [0.0, 1.0]}}}}
    (run,) = read_runs([str(make_run("run", ("films",), ("cls", "loc"), metrics, more={"details": details}))])
    stated = run.results.meta | {"config": "TEST: {SPECIFICITY: 0.95, FROC_IOU: 0.2}"}
    results = replace(run.results, meta=stated)
    labels, boxes = classes_section(run, results).tables
    assert labels.notes[1:] == ("sensitivity at a specificity of at least 95 %",)
    assert boxes.notes[1:] == ("FROC: a hit has IoU >= 0.2",)
    assert curves_section(run, results).parts[0].text == ("FROC: a hit has IoU >= 0.2.",)


def test_a_run_without_logs_and_evaluation(make_run: MakeRun) -> None:
    (run,) = read_runs([str(make_run("run", ("films",), ("cls",)))])
    assert training_section(run).empty and protocol(run)["evaluation"] == "none yet"
