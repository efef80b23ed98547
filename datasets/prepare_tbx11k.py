"""TBX11K: tuberculosis as label and boxes, official training and validation lists.

Example: python datasets/prepare_tbx11k.py TBX11K --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fx_d2.data.derived_boxes import clip_box
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import read_json
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["tbx11k"]
FOLDERS = {"health": 0, "sick": 0, "tb": 1}
"""Folder of an image -> label. The lists all_* name others, films of Shenzhen and Montgomery among them."""
CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")
"""All become the one class, as in the paper."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    return run(make_parser(__doc__), make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """A case an image of the two json files; its annotation is (label, corners of the boxes)."""
    cases = []
    for split in ("train", "val"):
        table = args.source / "annotations" / "json" / f"TBX11K_{split}.json"
        names, boxes = read_boxes(table)
        for number, name in names.items():
            folder = name.split("/")[0]
            if folder not in FOLDERS or "/" not in name:
                raise FXError(
                    f"{table}: image {name!r} is in none of the folders {list(FOLDERS)}: use TBX11K's own list"
                )
            annotation = (FOLDERS[folder], boxes[number])
            stem = name.rpartition(".")[0]
            cases.append(Case(image=args.source / "imgs" / name, patient_id=stem, split=split, annotation=annotation))
    note = "all categories as one class; images of tb without boxes are not annotated for them; each image a patient"
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note=note)


def read_boxes(table: Path) -> tuple[dict[int, str], dict[int, list[list[float]]]]:
    """File names and corners x1, y1, x2, y2 of the boxes by the number of the image."""
    content = read_json(table, dict)
    boxes: dict[int, list[list[float]]] = defaultdict(list)
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        for row in content["annotations"]:
            if categories.get(row["category_id"]) not in CATEGORIES or row["image_id"] not in names:
                raise FXError(f"{table}: annotation {row.get('id')} is of an unknown image, or of none of {CATEGORIES}")
            x, y, width, height = row["bbox"]
            boxes[row["image_id"]].append([x, y, x + width, y + height])
    except (KeyError, TypeError, ValueError) as error:
        raise FXError(f"{table}: not a COCO detection file ({type(error).__name__}: {error})") from None
    if len(names) != len(content["images"]):
        raise FXError(f"{table}: two images have one id")
    return names, boxes


def annotate(annotation: tuple[int, Sequence[Sequence[float]]], shape: tuple[int, int]) -> Mapping[str, Any]:
    """The label and the boxes; a film of tuberculosis without any box is not known to have none."""
    label, corners = annotation
    if corners and not label:
        raise FXError("has boxes of tuberculosis, but is not in the folder tb")
    boxes = [(SPEC.loc_classes[0], clip_box(box, shape)) for box in corners]
    return {"labels": [label], "boxes": boxes if boxes or not label else None}


if __name__ == "__main__":
    sys.exit(main())
