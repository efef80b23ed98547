from __future__ import annotations

from pathlib import Path

import pytest

from fx_d2.data.table import BY_NAME, PRETRAINING
from fx_d2.evaluation.report import LABELS
from fx_d2.reporting.paper import read_paper, row_of
from fx_d2.structures import FXError

ROW = "{{columns: {{x: X}}, tables: {{t: {{title: T, kind: heads, rows: [{{dataset: a, task: seg, {}}}]}}}}}}"
PAPER = Path(__file__).resolve().parents[2] / "projects" / "FoundationX" / "paper.yaml"


def test_the_paper_names_slots_classes_and_metrics_that_there_are() -> None:
    tables = read_paper(PAPER)
    assert [table.kind for table in tables] == ["baselines", "baselines", "starts", "few_shot", "heads"]
    for row in (row for table in tables for row in table.rows):
        spec = BY_NAME[row.dataset]
        assert row.task in spec.tasks and row.metric in LABELS and row.numbers
        assert set(row.classes) <= set(spec.classes(row.task))
    slots = [(row.dataset, row.task) for row in tables[0].rows]
    assert sorted(slots) == sorted((spec.name, task) for spec in PRETRAINING for task in spec.tasks)


def test_the_readme_tells_the_same_numbers() -> None:
    readme = (PAPER.parent / "README.md").read_text(encoding="utf-8").split("### Eleven datasets")[1]
    for row in read_paper(PAPER)[0].rows:
        assert f"{row.numbers['baseline']:.2f} -> {row.numbers['foundation_x']:.2f}" in readme


def test_rows_of_our_own() -> None:
    row = row_of("own", "loc", 6)
    assert (row.dataset, row.task, row.images) == ("own", "loc", 6) and row.metric == "AP40" and not row.numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("tables: {}", "exactly the keys columns and tables"),
        ("{columns: {}, tables: {t: {title: T, kind: other, rows: []}}}", "its kind is one of"),
        ("{columns: {x: X}, tables: {t: {title: T, kind: heads, rows: [{dataset: a, task: cls, y: 1}]}}}", "unknown"),
        ("{columns: {x: X}, tables: {t: {title: T, kind: heads, rows: [{dataset: a, task: all}]}}}", "task of"),
        ("{columns: {}, tables: [1]}", "columns and tables are mappings"),
        ("{columns: {}, tables: {t: }}", "exactly title, kind and rows"),
        ("{columns: {}, tables: {t: {title: T, kind: heads, rows: }}}", "rows is a list of mappings"),
        (ROW.format("metric: dices"), "no metric dices; metrics: dice, dice_positives"),
        (ROW.format("x: 90.1 %"), "in percent"),
        (ROW.format("images: few"), "images and the columns are numbers"),
        (ROW.format("classes: Heart"), "classes is a list of names"),
        (
            "{columns: {}, tables: {a: {title: A, kind: heads, rows: []}, b: {title: B, kind: heads, rows: []}}}",
            "a and b have the same kind",
        ),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "paper.yaml").write_text(text)
    with pytest.raises(FXError, match=message):
        read_paper(tmp_path / "paper.yaml")
    (tmp_path / "paper.yaml").write_bytes(b"\x89PNG")
    with pytest.raises(FXError, match="is not YAML"):
        read_paper(tmp_path / "paper.yaml")
    with pytest.raises(FXError, match="absent.yaml"):
        read_paper(tmp_path / "absent.yaml")
