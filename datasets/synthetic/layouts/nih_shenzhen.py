"""NIH Shenzhen: PNG files with the label at the end of the name, and one clinical reading per image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..film_record import Film
from .files import write_image


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; readings come in several formats."""
    paths = []
    for film in films:
        label = int(film.labels["Tuberculosis"] == 1)
        name = f"CHNCXR_{film.number + 1:04d}_{label}"
        paths.append(f"CXR_png/{name}.png")
        write_image(root / paths[-1], film.image)
        sex = {"F": "female", "M": "male"}[film.sex]
        first = (f"{sex} {film.age}yrs", f"{sex.title()}, {film.age} yrs")[film.number % 2]
        reading = root / "ClinicalReadings" / f"{name}.txt"
        reading.parent.mkdir(parents=True, exist_ok=True)
        reading.write_text(f"{first}\n{'PTB of the upper field' if label else 'normal'}\n", encoding="utf-8")
    return paths
