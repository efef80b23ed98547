"""VinDr-CXR organs: from the drawn release and CheXmask's table to what the world drew."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fx_d2.data.derived_boxes import boxes_of_masks
from fx_d2.data.masks import decode_masks

ROW = "vindr_organs"
TABLE = "chexmask/OriginalResolution/VinDr-CXR.csv"
STRUCTURES = ("heart", "left_lung", "right_lung")


@pytest.fixture
def chexmask(release: Callable[[str], Any]) -> tuple[str, str]:
    return ("--chexmask", str(release(ROW).root / TABLE))


def test_masks_and_their_extents_are_what_was_drawn(prepare: Callable[..., Any], chexmask: tuple[str, str]) -> None:
    splits = prepare(ROW, *chexmask, sub="vindr-cxr")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 10, "test": 4}
    for film, record in [pair for rows in splits.values() for pair in rows]:
        masks = decode_masks(record["masks"], ROW)
        for i, name in enumerate(STRUCTURES):
            assert np.array_equal(masks[..., i], film.structures[name])
            (box,) = [box["bbox"] for box in record["annotations"] if box["category_id"] == i]
            assert [box] == boxes_of_masks([film.structures[name]], "extent")


def test_halves_by_the_order_of_ids(prepare: Callable[..., Any], chexmask: tuple[str, str]) -> None:
    splits = prepare(ROW, *chexmask, "--halves", sub="vindr-cxr")
    rows = sorted(splits["train"], key=lambda pair: pair[1]["patient_id"])
    assert [record["annotated"] for _, record in rows] == [
        {"cls": False, "loc": i < 5, "seg": i >= 5} for i in range(10)
    ]
    assert all(record["annotated"]["loc"] and record["annotated"]["seg"] for _, record in splits["test"])


def test_a_compressed_table_and_a_mask_without_pixels(
    prepare: Callable[..., Any], release: Callable[[str], Any], tmp_path: Path
) -> None:
    header, first, *rest = (release(ROW).root / TABLE).read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index("Heart")] = ""
    file = tmp_path / "VinDr-CXR.csv.gz"
    file.write_bytes(gzip.compress("\n".join([header, ",".join(cells), *rest]).encode()))
    splits = prepare(ROW, "--chexmask", str(file), sub="vindr-cxr")
    (record,) = [r for rows in splits.values() for _, r in rows if r["patient_id"] == cells[0]]
    assert [box["category_id"] for box in record["annotations"]] == [1, 2]
    assert not decode_masks(record["masks"], ROW)[..., 0].any()


def change_first(column: str, value: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        header, first, *rest = (root / TABLE).read_text().splitlines()
        cells = first.split(",")
        cells[header.split(",").index(column)] = value
        (root / TABLE).write_text("\n".join([header, ",".join(cells), *rest]))

    return change


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Height", "1024", "masks are 1024 x 86, but the image is 96 x 86"),
        ("image_id", "lost", "image 'lost' is neither in train nor in test"),
        ("Heart", "1 2 1 2", "is it a relative code?"),
    ],
)
def test_a_faulty_table_is_refused(refused: Callable[..., str], column: str, value: str, message: str) -> None:
    assert message in refused(ROW, change_first(column, value), "--chexmask", f"COPY/{TABLE}", sub="vindr-cxr")
