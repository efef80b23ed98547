"""Montgomery: from the drawn release to what the world drew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fx_d2.data.masks import decode_masks

ROW = "nih_montgomery"


def test_both_lungs_are_one_mask(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 10, "val": 1, "test": 3}
    for film, record in [pair for rows in splits.values() for pair in rows]:
        both = film.structures["left_lung"] | film.structures["right_lung"]
        assert np.array_equal(decode_masks(record["masks"], ROW)[..., 0], both)
        label = int("tuberculosis" in film.kinds)
        assert record["meta"] == {"sex": film.sex, "age": film.age, "tuberculosis": label}
        assert record["patient_id"] == f"MCUCXR_{film.number + 1:04d}"


def mask_file(root: Path) -> Path:
    return sorted((root / "ManualMask" / "leftMask").glob("*.png"))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: mask_file(root).unlink(), "leftMask/MCUCXR_0001"),
        (
            lambda root: cv2.imwrite(str(mask_file(root)), np.zeros((9, 9), np.uint8)),
            "the mask has shape (9, 9), but the image",
        ),
        (
            lambda root: cv2.imwrite(str(mask_file(root)), np.arange(96 * 106, dtype=np.uint16).reshape(96, 106) % 3),
            "MCUCXR",
        ),
    ],
)
def test_faulty_masks_are_refused(refused: Callable[..., str], change: Callable[[Path], None], message: str) -> None:
    assert message in refused(ROW, change)
