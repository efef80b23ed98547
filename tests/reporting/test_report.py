from __future__ import annotations

from pathlib import Path

import pytest

from fx_d2.reporting import Document, ReportOptions, build_report, gallery, read_runs
from fx_d2.reporting.paper import PaperRow, PaperTable
from fx_d2.structures import FXError

from .conftest import MakeRun, film_arrays

METRICS = {"student/films/cls/auroc": 0.5, "student/films/cls/auroc/a": 0.5}


def report(*folders: Path, **options: object) -> Document:
    return build_report(read_runs([str(folder) for folder in folders]), ReportOptions(pictures=0, **options))


def test_sections_of_what_there_is(make_run: MakeRun) -> None:
    folder = make_run("a", ("films",), ("cls",), METRICS)
    document = report(folder)
    assert [section.key for section in document.sections] == ["runs", "tables", "run-a"]
    assert [part.title for part in document.sections[-1].parts] == ["Classes", "Protocol"]
    assert document.notice.startswith("Research use only")
    assert document.facts["runs"]["a"]["settings"]["SOLVER"] == {"BASE_LR": 1e-4}
    keys = [table.key for table in document.tables()]
    assert len(set(keys)) == len(keys)
    assert str(document.tables()[0].rows[0][5]) == "2026-01-02 03:04"


def test_joint_runs_come_first_and_few_shot_runs_are_in_their_table_only(make_run: MakeRun) -> None:
    few = [make_run(f"n{i}", ("films",), ("cls",), METRICS, images=3, draw=i) for i in (1, 2)]
    single = make_run("single", ("films",), ("cls",), METRICS)
    joint = make_run("joint", ("films",), ("cls", "seg"), METRICS | {"student/films/seg/dice": 0.5})
    keys = [section.key for section in report(*few, single, joint).sections]
    assert keys == ["runs", "tables", "not-shown", "run-joint", "run-single"]
    assert [section.key for section in report(few[0]).sections][-1] == "run-n1"


def test_a_few_images_of_several_datasets_have_no_table_but_a_section(make_run: MakeRun) -> None:
    metrics = METRICS | {"student/more/cls/auroc": 0.5}
    folders = [make_run("few", ("films", "more"), ("cls",), metrics, images=3), make_run("a", ("films",), ("cls",))]
    assert "run-few" in [section.key for section in report(*folders).sections]


def test_comparisons_that_were_asked_for(make_run: MakeRun) -> None:
    folders = [
        make_run(f"r{i}", ("films",), ("cls",), METRICS, scores={"student/films": film_arrays(i)}) for i in (1, 2)
    ]
    document = report(*folders, compare=(("r1", "r2"),), draws=20)
    section = next(section for section in document.sections if section.key == "compared")
    assert section.tables[0].title == "r2 (student) vs. r1 (student)"
    with pytest.raises(FXError, match="--compare r3"):
        report(*folders, compare=(("r1", "r3"),))


def test_names_that_would_be_one_file_are_refused(make_run: MakeRun) -> None:
    folders = [make_run(name, ("films",), ("cls",), METRICS) for name in ("a+b", "a b")]
    with pytest.raises(FXError, match=r"a\+b, a b: their files would have the same name"):
        report(*folders)


def test_tables_that_would_be_one_file_are_refused(make_run: MakeRun) -> None:
    row = PaperRow(dataset="films", task="cls", metric="auroc", numbers={"x": 1.0})
    paper = PaperTable(key="runs", title="P", kind="baselines", rows=(row,), columns={"x": "X"})
    with pytest.raises(FXError, match="two tables would be named runs: give the run"):
        report(make_run("a", ("films",), ("cls",), METRICS), paper=(paper,))


def test_pictures_that_cannot_be_drawn_are_a_sentence(make_run: MakeRun) -> None:
    folder = make_run("a", ("films",), ("cls",), METRICS)
    document = build_report(read_runs([str(folder)]), ReportOptions(pictures=1))
    part = next(part for part in document.sections[-1].parts if part.title == "Images by error")
    assert part.text[0].startswith("No images shown: predictions file")


def test_splits_without_pictures_for_one_reason_share_a_sentence(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gallery, "read_all_predictions", lambda path, score_thresh: ("student", {"films_test": {}}))
    folder = make_run("a", ("films", "more"), ("cls",), METRICS | {"student/more/cls/auroc": 0.5})
    section = gallery.galleries(read_runs([str(folder)])[0].results, "a", str(folder / "none"), 1)
    (line,) = section.text
    assert line.startswith("No images shown for films_test, more_test: ") and str(folder / "none") in line
    assert [record.getMessage() for record in caplog.records] == [f"a: {line}"]
