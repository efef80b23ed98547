"""Readings typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fx_d2.data.nlm_readings import name_parts, read_reading
from fx_d2.structures import FXError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("male 45yrs\nnormal", {"sex": "M", "age": 45}),
        ("Female, 27 yrs\nPTB in the left upper field", {"sex": "F", "age": 27}),
        ("female 4 months\nnormal", {"sex": "F", "age": 0}),
        ("Patient's Sex: F\nPatient's Age: 040Y\nnormal", {"sex": "F", "age": 40}),
        ("male 22\nnormal", {"sex": "M", "age": 22}),
        ("normal", {}),
    ],
)
def test_sex_and_age(tmp_path: Path, text: str, found: dict[str, Any]) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert read_reading(tmp_path / "a.txt") == found


def test_without_a_file() -> None:
    assert read_reading(Path("nowhere.txt")) == {}


def test_names() -> None:
    assert name_parts("MCUCXR_0104_1", "MCUCXR", Path("x")) == ("MCUCXR_0104", 1)
    for name in ("MCUCXR_0104_2", "CHNCXR_0104_1", "MCUCXR_0104"):
        with pytest.raises(FXError, match="x: must be named MCUCXR_<number>_<0 or 1>.png"):
            name_parts(name, "MCUCXR", Path("x"))
