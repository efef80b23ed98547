"""Reading whole splits: faults, depths, blank films."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from fx_d2.data.annotations import load_split
from fx_d2.data.fingerprint import film_print
from fx_d2.data.image_io import read_image
from fx_d2.data.inspection import inspect_split
from fx_d2.structures import DatasetSpec


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_found(make_dataset: Callable[..., Path], spec: DatasetSpec, workers: int) -> None:
    root = make_dataset() / spec.name
    dicts = load_split(root / "train.json", spec, "train")
    good = inspect_split(dicts, workers=workers)
    assert not good.faults and not good.blank and good.kinds == {"PNG, 8 bits": 2}
    assert (good.prints[1] == film_print(read_image(dicts[1]["file_name"]))).all()

    cv2.imwrite(dicts[0]["file_name"], np.full((40, 60), 300, np.uint16) * 100)
    Path(dicts[1]["file_name"]).write_bytes(Path(dicts[1]["file_name"]).read_bytes()[:-20])
    bad = inspect_split(dicts, workers=workers)
    assert bad.kinds == {"PNG, 16 bits": 1, "unreadable": 1} and bad.blank == [dicts[0]["file_name"]]
    assert len(bad.faults) == 1 and "train_b.png: truncated PNG" in bad.faults[0] and not bad.prints.any()


def test_a_mask_file_of_another_size(make_dataset: Callable[..., Path], spec: DatasetSpec) -> None:
    root = make_dataset() / spec.name
    dicts = load_split(root / "train.json", spec, "train")
    cv2.imwrite(str(root / "mask.png"), np.zeros((9, 9), np.uint8))
    dicts[0]["masks"][2] = {"file": str(root / "mask.png")}
    found = inspect_split(dicts)
    assert len(found.faults) == 1 and "the mask is 9 x 9, its image 60 x 40" in found.faults[0]
    assert found.kinds == {"PNG, 8 bits": 2} and found.prints.any(axis=1).all()
