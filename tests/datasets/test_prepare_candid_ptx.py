"""CANDID-PTX: from the drawn release to what the world drew."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fx_d2.data.codecs import encode_relative_rle
from fx_d2.data.masks import decode_masks

ROW = "candid_ptx"
TABLE = "Pneumothorax_reports.csv"


def test_labels_boxes_and_masks_are_what_was_drawn(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 9, "val": 1, "test": 4}
    for film, record in [pair for rows in splits.values() for pair in rows]:
        assert record["labels"] == [film.labels["Pneumothorax"]]
        assert [tuple(box["bbox"]) for box in record["annotations"]] == [instance.box for instance in film.instances]
        assert np.array_equal(decode_masks(record["masks"], ROW)[..., 0], film.merged("Pneumothorax"))
        assert record["patient_id"] == f"P{film.patient:05d}"
    owners = {split: {film.patient for film, _ in rows} for split, rows in splits.items()}
    assert not owners["train"] & owners["test"] and not owners["train"] & owners["val"]


def test_rows_of_one_image_are_merged_and_give_a_box_each(release: Callable[[str], Any]) -> None:
    annotate = importlib.import_module("prepare_candid_ptx").annotate
    whole = next(film.instances[0] for film in release(ROW).films if film.instances)
    part = whole.mask & (np.arange(whole.mask.shape[1]) <= np.nonzero(whole.mask)[1].mean())
    codes = [encode_relative_rle(mask) for mask in (part, whole.mask)]
    fields = annotate("annotations", codes, whole.mask.shape)
    assert fields["labels"] == [1] and len(fields["boxes"]) == 2
    assert np.array_equal(decode_masks(fields["masks"], ROW)[..., 0], whole.mask)
    assert annotate("extent", codes, whole.mask.shape)["boxes"] == [("Pneumothorax", list(whole.box))]


def test_a_blank_code_is_no_annotation(datasets_folder: Path) -> None:
    assert importlib.import_module("prepare_candid_ptx").annotate("annotations", [""], (8, 8)) == {}


def replace_cells(column: int, value: str, rows: slice) -> Callable[[Path], None]:
    """A change of the table: other cells of a column in some of its rows, the first of them repeated."""

    def change(root: Path) -> None:
        header, *lines = (root / TABLE).read_text().splitlines()
        changed = [[*line.split(",")[:column], value, *line.split(",")[column + 1 :]] for line in lines[rows]]
        (root / TABLE).write_text("\n".join([header, *lines, *(",".join(cells) for cells in changed)]) + "\n")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_cells(2, "P99999_0.dcm", slice(1)), "has two patients, P00001 and P99999"),
        (replace_cells(2, "nameless", slice(1)), "no patient in column 'filename'; see --patients"),
        (replace_cells(3, "9000 900", slice(None)), "run-length code ends at pixel 9900 of an image of 96 x 96"),
        (replace_cells(0, "1.2.3", slice(1)), "1.2.3: image file cannot be read"),
    ],
)
def test_a_faulty_table_is_refused(refused: Callable[..., str], change: Callable[[Path], None], message: str) -> None:
    assert message in refused(ROW, change)
