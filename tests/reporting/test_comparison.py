from __future__ import annotations

import numpy as np
import pytest

from fx_d2.evaluation import paired_differences, read_scores
from fx_d2.evaluation.paired import _shared_tasks
from fx_d2.reporting.comparison import Comparer, comparison_table, find_side, same_split
from fx_d2.reporting.runs import Run, read_runs
from fx_d2.structures import FXError

from .conftest import MakeRun, film_arrays

METRICS = {"student/films/cls/auroc": 0.5, "teacher/films/cls/auroc": 0.5}


@pytest.fixture
def runs(make_run: MakeRun) -> tuple[Run, ...]:
    folders = [
        make_run(f"r{i}", ("films",), ("cls",), METRICS, scores={"student/films": film_arrays(i)}) for i in (1, 2)
    ]
    return read_runs([str(folder) for folder in folders])


def test_the_table_holds_the_paired_differences(runs: tuple[Run, ...]) -> None:
    sides = (runs[0], "student"), (runs[1], "student")
    table = comparison_table("compared", *sides, Comparer(draws=100, seed=4))
    arrays = [read_scores(run.folder / "inference" / "scores_student_films_test.npz") for run in runs]
    pair = paired_differences(*arrays, draws=100, seed=4)["cls/auroc"]
    assert table.title == "r2 (student) vs. r1 (student)"
    row = next(row for row in table.rows if row[2] == "AUROC")
    assert [row[3].value, row[4].value] == pytest.approx([100 * pair.first, 100 * pair.second])
    assert row[5].value == pytest.approx(100 * pair.difference)
    assert row[5].interval == pytest.approx((100 * pair.low, 100 * pair.high))
    assert row[6].value == pytest.approx(100 * pair.better)


def test_splits_that_only_one_has_scores_of_are_named(runs: tuple[Run, ...], make_run: MakeRun) -> None:
    both = {"student/films/cls/auroc": 0.5, "student/jsrt/seg/dice": 0.5}
    more = make_run("more", ("films", "jsrt"), ("cls", "seg"), both, scores={"student/films": film_arrays(3)})
    same = make_run("same", ("films", "jsrt"), ("cls", "seg"), both, scores={"student/films": film_arrays(4)})
    sides = [(run, "student") for run in (runs[0], *read_runs([str(more), str(same)]))]
    for first, second in ((sides[0], sides[1]), (sides[1], sides[2])):  # not evaluated; without a file of scores
        table = comparison_table("x", first, second, Comparer(draws=10))
        assert {row[0] for row in table.rows} == {"films_test"}
        assert table.notes[1] == "not compared (needs scores of both models): jsrt_test"
    assert len(comparison_table("x", sides[0], (runs[1], "student"), Comparer(draws=10)).notes) == 1


def test_what_was_compared_is_kept(runs: tuple[Run, ...]) -> None:
    comparer = Comparer(draws=10)
    sides = (runs[0], "student"), (runs[1], "student")
    assert comparer.on_split(*sides, "films_test") is comparer.on_split(*sides, "films_test")
    assert comparer.on_split((runs[0], "teacher"), sides[1], "films_test") == {}  # without a file of scores
    assert Comparer(draws=0).on_split(*sides, "films_test") == {}


def test_sides_and_splits(runs: tuple[Run, ...], make_run: MakeRun) -> None:
    assert find_side("r2", runs) == (runs[1], "student") and find_side("r1:teacher", runs) == (runs[0], "teacher")
    for text, message in (("none", "no evaluated run"), ("r1:best", "has no best, only student, teacher")):
        with pytest.raises(FXError, match=message):
            find_side(text, runs)
    both = {"student/films_val/cls/auroc": 0.1, "student/films_test/cls/auroc": 0.2}
    folder = make_run("both", ("films",), ("cls",), both)
    validated = [
        read_runs([str(make_run(f"v{i}", ("films",), ("cls",), {"student/films/cls/auroc": 0.1}, split="val"))])[0]
        for i in (1, 2)
    ]
    assert same_split([validated[0], *runs[:1]], "films") == "films_test"  # the first one has not been tested yet
    assert same_split([*validated, *runs[:1]], "films") == "films_val"
    assert same_split(runs, "films") == "films_test" and same_split(read_runs([str(folder)]), "other") is None


def test_runs_with_nothing_in_common(runs: tuple[Run, ...], make_run: MakeRun) -> None:
    other = read_runs([str(make_run("other", ("jsrt",), ("seg",), {"student/jsrt/seg/dice": 0.1}))])[0]
    with pytest.raises(FXError, match="not evaluated on a common split"):
        comparison_table("x", (runs[0], "student"), (other, "student"), Comparer())
    with pytest.raises(FXError, match="no scores files"):
        comparison_table("x", (runs[0], "teacher"), (runs[1], "teacher"), Comparer())


def test_a_model_of_one_task_is_compared_in_it() -> None:
    """A baseline of one task has no classes of the others (DATASETS.TASKS)."""
    first = {"dataset": np.array("films"), "image_id": np.arange(2), "patient_id": np.array(["a", "b"])}
    first |= {f"{task}_classes": np.array(["x"]) for task in ("cls", "loc", "seg")} | {"seg_positive": np.zeros((2, 1))}
    second = first | {"cls_classes": np.array([], str)}
    assert _shared_tasks(first, second) == ["seg"]
    with pytest.raises(FXError, match="their seg_classes differ"):
        _shared_tasks(first, second | {"seg_classes": np.array(["y"])})
