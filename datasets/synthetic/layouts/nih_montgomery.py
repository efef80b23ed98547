"""NIH Montgomery: PNG files, one mask file per lung, and one clinical reading per image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..film_record import Film
from .files import write_image


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts."""
    paths = []
    for film in films:
        label = int("tuberculosis" in film.kinds)
        name = f"MCUCXR_{film.number + 1:04d}_{label}"
        paths.append(f"CXR_png/{name}.png")
        write_image(root / paths[-1], film.image)
        for side in ("left", "right"):
            mask = film.structures[f"{side}_lung"].astype(np.uint8) * 255
            write_image(root / "ManualMask" / f"{side}Mask" / f"{name}.png", mask)
        reading = root / "ClinicalReadings" / f"{name}.txt"
        reading.parent.mkdir(parents=True, exist_ok=True)
        text = f"Patient's Sex: {film.sex}\nPatient's Age: {film.age:03d}Y\n{'tuberculosis' if label else 'normal'}\n"
        reading.write_text(text, encoding="utf-8")
    return paths
