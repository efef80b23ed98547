"""TBX11K: tuberculosis labels and boxes; official training and validation lists.

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
"""Image folder -> label. The lists all_* include other folders, such as images of Shenzhen and Montgomery."""
CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")
"""All mapped to one class, as in the paper."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    return run(make_parser(__doc__), make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image in the two JSON files, annotated with (label, box corners)."""
    cases = []
    for split in ("train", "val"):
        table = args.source / "annotations" / "json" / f"TBX11K_{split}.json"
        names, boxes = read_boxes(table)
        for number, name in names.items():
            folder = name.split("/")[0]
            if folder not in FOLDERS or "/" not in name:
                raise FXError(
                    f"{table}: image {name!r} is in none of the folders {list(FOLDERS)}: use the original TBX11K list"
                )
            annotation = (FOLDERS[folder], boxes[number])
            stem = name.rpartition(".")[0]
            cases.append(Case(image=args.source / "imgs" / name, patient_id=stem, split=split, annotation=annotation))
    note = "one class for all categories; tb images without boxes count as not annotated; every image is a patient"
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note=note)


def read_boxes(table: Path) -> tuple[dict[int, str], dict[int, list[list[float]]]]:
    """File names and box corners x1, y1, x2, y2, by image id."""
    content = read_json(table, dict)
    boxes: dict[int, list[list[float]]] = defaultdict(list)
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        for row in content["annotations"]:
            if categories.get(row["category_id"]) not in CATEGORIES or row["image_id"] not in names:
                raise FXError(
                    f"{table}: annotation {row.get('id')} has an unknown image or a category not in {CATEGORIES}"
                )
            x, y, width, height = row["bbox"]
            boxes[row["image_id"]].append([x, y, x + width, y + height])
    except (KeyError, TypeError, ValueError) as error:
        raise FXError(f"{table}: not a COCO detection file ({type(error).__name__}: {error})") from None
    if len(names) != len(content["images"]):
        raise FXError(f"{table}: two images have the same id")
    return names, boxes


def annotate(annotation: tuple[int, Sequence[Sequence[float]]], shape: tuple[int, int]) -> Mapping[str, Any]:
    """The label and boxes; a tuberculosis image without boxes counts as not annotated for boxes."""
    label, corners = annotation
    if corners and not label:
        raise FXError("has tuberculosis boxes, but is not in folder tb")
    boxes = [(SPEC.loc_classes[0], clip_box(box, shape)) for box in corners]
    return {"labels": [label], "boxes": boxes if boxes or not label else None}


if __name__ == "__main__":
    sys.exit(main())
