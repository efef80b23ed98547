"""Predictions as self-describing data: a JSON document, and table rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fx_d2.engine import versions
from fx_d2.predictor import FXPredictor, HeadPrediction, ImagePrediction

FORMAT, VERSION = "fx_d2_prediction", 1

NOTICE = "research use only"

TABLES = {
    "cls": ("labels.csv", ("class", "probability", "operating_point", "above")),
    "loc": ("boxes.csv", ("class", "score", "x1", "y1", "x2", "y2")),
    "seg": ("masks.csv", ("class", "pixels", "share")),
}
"""Task -> file name of its table, and the columns between "file", "dataset" and "notice"."""

Row = tuple[Any, ...]


def document(prediction: ImagePrediction, predictor: FXPredictor, score_thresh: float) -> dict[str, Any]:
    """One image's prediction as self-contained data for JSON.

    Returns:
        {"format": FORMAT, "version": VERSION, "notice": NOTICE, "model": {"which", "weights_hash"}, "versions":
        {library: version}, "score_thresh"} plus the items of `ImagePrediction.to_dict`.
    """
    about = {
        "format": FORMAT,
        "version": VERSION,
        "notice": NOTICE,
        "model": {"which": predictor.which, "weights_hash": predictor.weights_hash},
        "versions": versions(),
        "score_thresh": score_thresh,
    }
    return about | prediction.to_dict()


def table_rows(prediction: ImagePrediction) -> Iterator[tuple[str, Row]]:
    """(task, table row) for every class, box and mask; "operating_point" and "above" may be blank."""
    for dataset, head in prediction.heads.items():
        for task, row in _head_rows(head):
            yield task, (prediction.file_name, dataset, *row, NOTICE)


def _head_rows(head: HeadPrediction) -> Iterator[tuple[str, Row]]:
    above = head.above
    for name, probability in (head.labels or {}).items():
        point = (head.thresholds[name], int(above[name])) if name in above else ("", "")
        yield "cls", (name, probability, *point)
    if head.boxes is not None and head.scores is not None and head.classes is not None:
        for kind, score, box in zip(head.classes.tolist(), head.scores.tolist(), head.boxes.tolist(), strict=True):
            yield "loc", (head.spec.loc_classes[kind], score, *box)
    if head.masks is not None:
        for name, mask in zip(head.spec.seg_classes, head.masks, strict=True):
            yield "seg", (name, int(mask.sum()), float(mask.mean()))
