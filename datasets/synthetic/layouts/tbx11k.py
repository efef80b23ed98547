"""TBX11K: PNG files in folders health, sick and tb, and a COCO JSON file for each of train and val."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..film_record import Film
from .files import write_image, write_json

CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; findings cycle through the three categories. The first tuberculosis image has no boxes."""
    paths: list[str] = []
    categories = [{"id": i, "name": name, "supercategory": "TB"} for i, name in enumerate(CATEGORIES, start=1)]
    tables: dict[str, dict[str, list[Any]]] = {
        split: {"images": [], "annotations": [], "categories": categories} for split in ("train", "val")
    }
    without = True
    for film in films:
        folder = "tb" if film.labels["Tuberculosis"] == 1 else "sick" if film.kinds else "health"
        name = f"{folder}/{folder[0]}{film.number:04d}.png"
        paths.append(f"imgs/{name}")
        write_image(root / paths[-1], film.image)
        table = tables["train" if film.split == "train" else "val"]
        height, width = film.image.shape
        table["images"].append({"id": film.number, "file_name": name, "width": width, "height": height})
        if folder == "tb" and without:
            without = False
            continue
        for instance in film.instances:
            x, y, w, h = instance.box
            number = len(table["annotations"])
            row = {"id": number, "image_id": film.number, "category_id": 1 + number % 3, "bbox": [x, y, w, h]}
            table["annotations"].append(row | {"area": w * h, "iscrowd": 0})
    for split, table in tables.items():
        write_json(root / "annotations" / "json" / f"TBX11K_{split}.json", table)
    return paths
