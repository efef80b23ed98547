"""Predictions as documents and table rows: the same numbers, and what they are."""

import json
from pathlib import Path

import pytest

from fx_d2.demo.document import FORMAT, TABLES, VERSION, document, table_rows
from fx_d2.engine import versions
from fx_d2.predictor import FXPredictor


def test_a_document_says_what_it_is(predictor: FXPredictor, film_folder: Path) -> None:
    found = predictor(film_folder / "a.png", score_thresh=0.1)
    content = json.loads(json.dumps(document(found, predictor, 0.1)))
    assert content == json.loads(json.dumps(found.to_dict())) | {
        "format": FORMAT,
        "version": VERSION,
        "notice": "research use only",
        "model": {"which": "student", "weights_hash": predictor.weights_hash},
        "versions": versions(),
        "score_thresh": 0.1,
    }


def test_rows_hold_every_class_box_and_mask(predictor: FXPredictor, film_folder: Path) -> None:
    path = film_folder / "a.png"
    head = predictor(path, score_thresh=0.0)["tiny"]
    assert head.labels is not None and head.boxes is not None and head.masks is not None
    predictor.thresholds = {"tiny": {"mass": head.labels["mass"], "left lung": 1.0}}
    found = predictor(path, score_thresh=0.0)
    rows: dict[str, list[dict[str, object]]] = {task: [] for task in TABLES}
    for task, row in table_rows(found):
        columns = ("file", "dataset", *TABLES[task][1], "notice")
        rows[task].append(dict(zip(columns, row, strict=True)))
    everything = [row for each in rows.values() for row in each]
    assert {(row["file"], row["notice"]) for row in everything} == {(str(path), "research use only")}
    assert {row["dataset"] for row in rows["loc"] + rows["seg"]} == {"tiny"}
    tiny = {row["class"]: row for row in rows["cls"] if row["dataset"] == "tiny"}
    assert {name: row["probability"] for name, row in tiny.items()} == head.labels
    points = {name: (row["operating_point"], row["above"]) for name, row in tiny.items()}
    assert points == {"mass": (head.labels["mass"], 1), "left lung": (1.0, 0), "right lung": ("", "")}
    assert len([row for row in rows["cls"] if row["dataset"] == "tiny_softmax"]) == 3
    assert [[row[c] for c in ("x1", "y1", "x2", "y2")] for row in rows["loc"]] == head.boxes.tolist()
    assert [row["score"] for row in rows["loc"]] == head.scores.tolist()
    assert [row["pixels"] for row in rows["seg"]] == head.masks.sum((1, 2)).tolist()
    assert [row["share"] for row in rows["seg"]] == pytest.approx(head.masks.mean((1, 2)))
