"""File names and clinical readings of the two tuberculosis datasets of the National Library of Medicine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fx_d2.structures import FXError

_SEX = re.compile(r"\b(female|male|[FM])\b", re.IGNORECASE)
_AGE = re.compile(r"(\d{1,3})\s*(y|m(?!ale)|d|$)", re.IGNORECASE | re.MULTILINE)
"""Readings are typed by hand: "male 45yrs", "Female, 4 months", "Patient's Age: 040Y"."""


def name_parts(name: str, prefix: str, path: Path) -> tuple[str, int]:
    """Patient and label (1 = tuberculosis) from a file name <prefix>_<number>_<0 or 1>; FXError naming `path`."""
    match = re.fullmatch(rf"({prefix}_\d+)_([01])", name)
    if match is None:
        raise FXError(f"{path}: must be named {prefix}_<number>_<0 or 1>.png, where the last digit is the label")
    return match[1], int(match[2])


def read_reading(path: Path) -> dict[str, Any]:
    """Sex ("F", "M") and age (years, rounded down) from a clinical reading, if given; {} without a file."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    sex, age = _SEX.search(text), _AGE.search(text)
    found: dict[str, Any] = {"sex": sex[1][0].upper()} if sex else {}
    return found | ({"age": int(age[1]) if age[2].lower() in ("y", "") else 0} if age else {})
