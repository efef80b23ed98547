from __future__ import annotations

import csv
import io
import math

import pytest

from fx_d2.reporting.runs import read_runs
from fx_d2.reporting.tables import Number, Table, count, difference, percent, pooled

from .conftest import MakeRun


def test_a_number_is_shown_with_what_is_known_of_it() -> None:
    assert str(Number(value=90.034)) == "90.03"
    assert str(Number(value=90.034, interval=(88.12, 91.96))) == "90.03 [88.1, 92.0]"
    assert str(Number(value=80.0, deviation=1.234, runs=5)) == "80.00 ± 1.23 (5)"
    assert str(Number(value=1.25, signed=True, interval=(-0.04, 2.0))) == "+1.25 ↑ [-0.04, +2.00]"
    assert str(Number(value=1.25, signed=True, interval=(-0.004, 2.0))) == "+1.25 ↑ [0.00, +2.00]"
    assert str(Number(value=-1.25, signed=True)) == "-1.25 ↓"


@pytest.mark.parametrize(("value", "shown"), [(0.004, "0.00 ="), (-0.004, "0.00 ="), (0.006, "+0.01 ↑")])
def test_the_arrow_follows_what_is_shown(value: float, shown: str) -> None:
    assert str(Number(value=value, signed=True)) == shown


def test_blank_is_not_zero() -> None:
    assert percent(None) == "" == percent(math.nan) == count(None) == difference("", Number(value=1.0))
    assert str(percent(0.0)) == "0.00" and str(count(3.0)) == "3"
    assert str(difference(percent(0.5), percent(0.25), (-0.3, -0.2))) == "-25.00 ↓ [-30.00, -20.00]"


TABLE = Table(
    key="t",
    title="A table",
    columns=("name", "ours", "paper"),
    rows=(("a|b", Number(value=100 / 3, interval=(30.0, 40.0)), ""), ("c", "", Number(value=1.0))),
    notes=("a note",),
)


def test_markdown_csv_and_json() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0].split("|")[1].strip() == "name" and lines[1].endswith(":|") and r"a\|b" in lines[2]
    assert "33.33 [30.0, 40.0]" in lines[2] and lines[-1] == "- a note"
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows[0] == ["name", "ours", "ours low", "ours high", "paper"]
    assert rows[1] == ["a|b", str(100 / 3), "30.0", "40.0", ""] and rows[2] == ["c", "", "", "", "1.0"]
    assert TABLE.data()["rows"][1] == ["c", None, {"value": 1.0}] and TABLE.numeric == (False, True, True)
    assert Table(key="e", title="", columns=("x",), rows=()).markdown().startswith("| x")


def test_a_cell_stays_in_its_cell() -> None:
    """Names of runs and classes, and a command's words, are the user's."""
    rows = (("a|b", "python x.py\n  OUTPUT_DIR y"),)
    lines = Table(key="t", title="", columns=("run|name (student)", "fact"), rows=rows).markdown().splitlines()
    assert len(lines) == 3 and all(line.replace("\\|", "").count("|") == 3 for line in lines)
    assert "run\\|name (student)" in lines[0] and "python x.py OUTPUT_DIR y" in lines[2]


def test_one_run_has_its_interval_and_several_their_deviation(make_run: MakeRun) -> None:
    key = "student/jsrt/seg/dice"
    values, intervals = (0.80, 0.82, 0.87), {key: [0.7, 0.9], f"{key}/Heart": [0.8, 1.0]}
    runs = []
    for i, value in enumerate(values):
        metrics = {key: value, f"{key}/Heart": value + 0.1, f"{key}/Lungs": value}
        folder = make_run(f"r{i}", ("jsrt",), ("seg",), metrics, intervals=intervals, seed=i)
        runs += read_runs([str(folder)])
    what = ("student", "jsrt_test", "seg", "dice")
    assert str(pooled(runs[:1], *what)) == "80.00 [70.0, 90.0]"
    several = pooled(runs, *what)
    assert several.value == pytest.approx(83) and several.runs == 3
    assert several.deviation == pytest.approx(math.sqrt(((3**2) + 1 + 4**2) / 2))
    two = pooled(runs[:2], *what)
    assert (two.value, two.deviation, two.runs) == (pytest.approx(81), pytest.approx(math.sqrt(2)), 2)
    assert two.interval is None is several.interval
    of_classes = pooled(runs[:1], *what, ("Heart", "Lungs"))
    assert of_classes.value == pytest.approx(85) and of_classes.interval is None  # that of one class is not theirs
    assert pooled(runs[:1], *what, ("Heart",)).interval == pytest.approx((80, 100))
    assert pooled(runs, "teacher", *what[1:]) == "" == pooled(runs, "student", "jsrt_val", "seg", "dice")
    assert pooled([], *what) == ""
