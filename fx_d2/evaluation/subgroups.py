"""Groups of images by what the records know about the patient and the film."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

AGE_BANDS = (0, 20, 40, 60, 80)
"""Where bands of age in years begin; the last one has no end."""


class ImageInfo(NamedTuple):
    """What evaluation keeps of an image beside its scores; "" = unknown."""

    file_name: str
    patient_id: str
    sex: str
    age: str
    view: str


def groups(images: Mapping[int, ImageInfo]) -> dict[str, list[int]]:
    """Image ids by group: "sex=F", "age=40-59", "age=80+", "view=PA"; an image with an unknown value is in none.

    A property in which all images agree makes no group: it would be the whole over again.
    """
    found: dict[str, dict[str, list[int]]] = {"sex": {}, "age": {}, "view": {}}
    for image_id, info in images.items():
        for key, value in (("sex", info.sex.upper()), ("age", age_band(info.age)), ("view", info.view.upper())):
            if value:
                found[key].setdefault(value, []).append(image_id)
    total = len(images)
    return {
        f"{key}={value}": ids
        for key, values in found.items()
        for value, ids in sorted(values.items())
        if len(ids) < total
    }


def age_band(age: str) -> str:
    """The band of an age such as "63", "63.5" or DICOM's "063Y"; "" for what is no plausible age in years."""
    match = re.fullmatch(r"\s*(\d{1,3})(?:\.\d+)?\s*Y?\s*", age, re.IGNORECASE)
    if match is None or int(match.group(1)) > 120:
        return ""
    start = max(begin for begin in AGE_BANDS if begin <= int(match.group(1)))
    return f"{start}+" if start == AGE_BANDS[-1] else f"{start}-{AGE_BANDS[AGE_BANDS.index(start) + 1] - 1}"


def means_only(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without those of single classes, which small groups cannot carry."""
    return {key: value for key, value in metrics.items() if "/" not in key}
