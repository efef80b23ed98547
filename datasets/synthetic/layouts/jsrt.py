"""JSRT: headerless .IMG files of 2048 x 2048 big-endian inverted 12-bit values, and SCR GIF masks in two folds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..film_record import Film

SIDE = 2048
PARTS = {
    "heart": "heart",
    "left lung": "left_lung",
    "right lung": "right_lung",
    "left clavicle": "left_clavicle",
    "right clavicle": "right_clavicle",
}


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; images are enlarged to the fixed size of the format. Images with odd numbers are in fold 1."""
    paths: list[str] = []
    counts = {"JPCLN": 0, "JPCNN": 0}
    for film in films:
        kind = "JPCLN" if film.kinds else "JPCNN"
        counts[kind] += 1
        name = f"{kind}{counts[kind]:03d}"
        paths.append(f"All247images/{name}.IMG")
        (root / paths[-1]).parent.mkdir(parents=True, exist_ok=True)
        pixels = cv2.resize(film.image, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        (root / paths[-1]).write_bytes(np.rint(4095 - pixels / 255 * 4095).astype(">u2").tobytes())
        for folder, structure in PARTS.items():
            mask = film.structures[structure].astype(np.uint8) * 255
            file = root / "SCR" / f"fold{1 if film.number % 2 else 2}" / "masks" / folder / f"{name}.gif"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(cv2.resize(mask, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_NEAREST)).save(file)
    return paths
