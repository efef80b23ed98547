"""VinDr-RibCXR: PNG files, and one JSON file per split with a contour for each rib, by image number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fx_d2.data.table import RIB_CLASSES

from ..film_record import Film
from .files import outlines, write_image, write_json


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; every fifth image has no contours of the tenth ribs: "None"."""
    paths: list[str] = []
    tables: dict[str, dict[str, dict[str, Any]]] = {
        split: {key: {} for key in ("img", *RIB_CLASSES)} for split in ("train", "val")
    }
    for film in films:
        split = "train" if film.split == "train" else "val"
        table = tables[split]
        key = str(len(table["img"]))
        paths.append(f"data/{split}/img/VinDr_RibCXR_{split}_{int(key):03d}.png")
        write_image(root / paths[-1], film.image)
        table["img"][key] = paths[-1]
        for name in RIB_CLASSES:
            hidden = film.number % 5 == 0 and name.endswith("10")
            contours = [] if hidden else outlines(film.structures[name])[:1]
            table[name][key] = [{"x": x, "y": y} for x, y in contours[0]] if contours else "None"
    for split, table in tables.items():
        write_json(root / f"Vindr_RibCXR_{split}_mask.json", table)
    return paths
