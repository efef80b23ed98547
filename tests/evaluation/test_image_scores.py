from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fx_d2.evaluation import read_scores
from fx_d2.evaluation.image_scores import write_scores
from fx_d2.evaluation.subgroups import ImageInfo
from fx_d2.structures import DatasetSpec, FXError

SPEC = DatasetSpec(name="films", title="Films", cls_classes=("a", "größer"))


def test_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.npz"
    images = {3: ImageInfo("x.png", "p1", "F", "60", ""), 9: ImageInfo("y.png", "p2", "", "", "PA")}
    write_scores(path, SPEC, images, {"cls_scores": np.array([[0.1, 0.2], [np.nan, np.nan]], np.float32)})
    found = read_scores(path)
    assert found["image_id"].tolist() == [3, 9] and found["view"].tolist() == ["", "PA"]
    assert found["cls_classes"].tolist() == ["a", "größer"] and found["loc_classes"].shape == (0,)
    assert found["cls_scores"].dtype == np.float32 and np.isnan(found["cls_scores"][1]).all()
    first = path.read_bytes()
    write_scores(path, SPEC, images, {"cls_scores": found["cls_scores"]})
    assert path.read_bytes() == first  # no time, no order of threads


def test_wrong_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    with pytest.raises(FXError, match="scores.npz"):
        read_scores(path)
    np.savez_compressed(path, version=np.array(2), cls_scores=np.arange(1000.0))
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + b"\xff" * 40 + whole[middle + 40 :]
    np.save(tmp_path / "one.npy", np.zeros(3))
    for content in (b"nothing", whole[:-30], damaged, (tmp_path / "one.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(FXError, match="scores.npz"):
            read_scores(path)
    np.savez(path, version=np.array(99))
    with pytest.raises(FXError, match="version 2"):
        read_scores(path)
