"""Shenzhen: from the drawn release to what the world drew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

ROW = "nih_shenzhen"


def test_labels_patients_and_readings(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 10, "val": 1, "test": 3}
    labels = []
    for film, record in [pair for rows in splits.values() for pair in rows]:
        assert record["labels"] == [film.labels["Tuberculosis"]]
        assert record["patient_id"] == f"CHNCXR_{film.number + 1:04d}"
        assert record["meta"] == {"sex": film.sex, "age": film.age}
        labels += record["labels"]
    assert 0 < sum(labels) < 14


def test_lists_of_ones_own(prepare: Callable[..., Any], release: Callable[[str], Any], tmp_path: Path) -> None:
    """Names with label behind a comma, as the authors' lists have them."""
    names = [Path(path).name for path in release(ROW).paths]
    for split, part in (("train", names[:5]), ("test", names[5:8])):
        (tmp_path / f"{split}.txt").write_text("".join(f"{name},{name[-5]}\n" for name in part))
    splits = prepare(ROW, "--splits", str(tmp_path))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 5, "test": 3}


def test_a_name_without_label_is_refused(refused: Callable[..., str]) -> None:
    def rename(root: Path) -> None:
        next((root / "CXR_png").glob("*_1.png")).rename(root / "CXR_png" / "CHNCXR_0001.png")

    assert "must be named CHNCXR_<number>_<0 or 1>.png" in refused(ROW, rename)
