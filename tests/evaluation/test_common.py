from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest

from fx_d2.evaluation.common import gather_by_image, nan_mean, write_atomic


def test_gathered_images_are_sorted() -> None:
    assert list(gather_by_image({3: "c", 1: "a", 2: "b"}) or {}) == [1, 2, 3]


def test_an_image_of_two_processes_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda rows, dst: [rows, {1: "again", 2: "b"}])
    assert gather_by_image({1: "a"}) == {1: "a", 2: "b"}
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    assert gather_by_image({1: "a"}) is None


def test_mean_leaves_undefined_values_out_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nan_mean([1.0, math.nan, 3.0]) == 2.0
        assert math.isnan(nan_mean([math.nan])) and math.isnan(nan_mean([]))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "old")
    write_atomic(path, "new \N{CHECK MARK}")
    assert path.read_text(encoding="utf-8") == "new \N{CHECK MARK}"

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "half")
    assert path.read_text(encoding="utf-8") == "new \N{CHECK MARK}"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
