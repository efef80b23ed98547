"""Subgroups of images by patient sex and age and by view."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

AGE_BANDS = (0, 20, 40, 60, 80)
"""Lower bounds of the age bands in years; the last band is open-ended."""


class ImageInfo(NamedTuple):
    """What an evaluation keeps of an image in addition to its scores; "" = unknown."""

    file_name: str
    patient_id: str
    sex: str
    age: str
    view: str


def groups(images: Mapping[int, ImageInfo]) -> dict[str, list[int]]:
    """Image ids by group: "sex=F", "age=40-59", "age=80+", "view=PA"; images with an unknown value are in no group.

    A value that all images share makes no group, since it would equal the whole split.
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
    """Age band of a value such as "63", "63.5" or DICOM's "063Y"; "" if it is not a plausible age in years."""
    match = re.fullmatch(r"\s*(\d{1,3})(?:\.\d+)?\s*Y?\s*", age, re.IGNORECASE)
    if match is None or int(match.group(1)) > 120:
        return ""
    start = max(begin for begin in AGE_BANDS if begin <= int(match.group(1)))
    return f"{start}+" if start == AGE_BANDS[-1] else f"{start}-{AGE_BANDS[AGE_BANDS.index(start) + 1] - 1}"


def means_only(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without the per-class ones, which are unreliable in small groups."""
    return {key: value for key, value in metrics.items() if "/" not in key}
