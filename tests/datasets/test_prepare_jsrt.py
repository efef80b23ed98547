"""JSRT with SCR: from the drawn release to what the world drew."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fx_d2.data.annotations import load_split
from fx_d2.data.masks import decode_masks
from fx_d2.data.table import BY_NAME

ROW = "jsrt"


def test_masks_of_half_the_size_in_the_folds_of_scr(
    release: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = release(ROW)
    command = [str(drawn.root / "All247images"), "--scr", str(drawn.root / "SCR"), "--output", str(tmp_path)]
    assert importlib.import_module("prepare_jsrt").main([*command, "--workers", "0", "--test-fold", "1"]) == 0
    for split, fold in (("train", 2), ("test", 1)):
        records = load_split(tmp_path / ROW / f"{split}.json", BY_NAME[ROW], split)
        assert len(records) == 7
        for record in records[:2]:
            film = drawn.by_path[record["file_name"]]
            assert film.number % 2 == fold % 2
            masks = decode_masks(record["masks"], ROW)
            parts = (("heart",), ("left_lung", "right_lung"), ("left_clavicle", "right_clavicle"))
            for i, names in enumerate(parts):
                union = np.any([film.structures[name] for name in names], axis=0).astype(np.uint8)
                half = cv2.resize(union, (1024, 1024), interpolation=cv2.INTER_NEAREST)
                assert np.array_equal(masks[..., i], half.repeat(2, 0).repeat(2, 1)), (film.number, names)


def scr(root: Path, fold: int = 1) -> list[Path]:
    return sorted((root / "SCR" / f"fold{fold}" / "masks" / "heart").glob("*.gif"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: scr(root)[0].unlink(), "masks/heart: has no mask for JPC"),
        (lambda root: next((root / "All247images").glob("*.IMG")).unlink(), ".IMG, but"),
        (lambda root: scr(root)[0].write_bytes(b"GIF89a"), "fold1/masks/heart/JPC"),
        (
            lambda root: next((root / "All247images").glob("*.IMG")).write_bytes(b"12"),
            "has 2 bytes, but a JSRT .IMG file has",
        ),
    ],
)
def test_faulty_files_are_refused(refused: Callable[..., str], change: Callable[[Path], None], message: str) -> None:
    assert message in refused(ROW, change, "--scr", "COPY/SCR", sub="All247images")
