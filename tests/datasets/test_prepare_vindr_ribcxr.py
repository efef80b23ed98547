"""VinDr-RibCXR: from the drawn release to what the world drew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fx_d2.data.masks import decode_masks
from fx_d2.data.table import RIB_CLASSES

ROW = "vindr_ribcxr"


def test_ribs_are_what_was_drawn(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 8, "val": 6}
    for film, record in [pair for rows in splits.values() for pair in rows]:
        masks = decode_masks(record["masks"], ROW)
        for i, name in enumerate(RIB_CLASSES):
            hidden = film.number % 5 == 0 and name.endswith("10")
            assert np.array_equal(masks[..., i], film.structures[name] & (not hidden)), (film.number, name)


def test_a_rib_without_contour_can_be_unknown(prepare: Callable[..., Any]) -> None:
    film, record = prepare(ROW, "--without-contour", "unknown")["train"][0]
    assert film.number == 0
    assert [name for name, mask in zip(RIB_CLASSES, record["masks"], strict=True) if mask is None] == ["R10", "L10"]


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        file = root / "Vindr_RibCXR_val_mask.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.pop("L3"), "no column 'L3' by image number"),
        (lambda table: table["R2"].pop("1"), "column 'R2' has no image number 1 (VinDr_RibCXR_val_001)"),
        (lambda table: table["R2"].update({"1": "none"}), 'a contour must be "None" or a list of points'),
        (lambda table: table["img"].update({"1": "data/val/img/lost.png"}), "data/val/img/lost.png: image file cannot"),
    ],
)
def test_a_faulty_table_is_refused(
    refused: Callable[..., str], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert message in refused(ROW, edit(change))
