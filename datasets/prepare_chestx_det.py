"""ChestX-Det: labels, boxes and masks (one polygon per instance) of thirteen findings; official split.

Example: python datasets/prepare_chestx_det.py ChestX-Det --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fx_d2.data.codecs import fill_polygons
from fx_d2.data.derived_boxes import clip_box
from fx_d2.data.masks import encode_mask
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import find_file, index_files, read_json
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["chestx_det"]
LISTS = ("syms", "boxes", "polygons")
"""Parallel lists in an entry of the JSON file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--boxes",
        choices=("stated", "polygons"),
        default="stated",
        help="boxes from the json, or extents of the polygons (default %(default)s)",
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per entry of the two JSON files; the release does not identify patients."""
    cases = []
    for split in ("train", "test"):
        table = find_file(args.source, (f"ChestX_Det_{split}.json",))
        folder = args.source / f"{split}_data"
        files = index_files(folder, (".png",))
        for entry in read_json(table, list):
            try:
                name, lists = str(entry["file_name"]).removesuffix(".png"), [entry[key] for key in LISTS]
                instances = [(str(finding), *shapes) for finding, *shapes in zip(*lists, strict=True)]
            except (KeyError, TypeError, ValueError):
                raise FXError(
                    f"{table}: an entry needs file_name, and {LISTS} of equal length: {str(entry)[:80]}"
                ) from None
            path = files.get(name, folder / f"{name}.png")
            cases.append(Case(image=path, patient_id=name, split=split, annotation=instances))
    note = f"boxes: {args.boxes}; every image is a separate patient"
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=partial(annotate, args.boxes), note=note)


def annotate(rule: str, instances: Sequence[tuple[str, Any, Any]], shape: tuple[int, int]) -> Mapping[str, Any]:
    """Labels of the findings, one box per instance, and one mask per class: the union of its polygons."""
    strange = sorted({name for name, _, _ in instances} - set(SPEC.cls_classes))
    if strange:
        raise FXError(f"finding {strange[0]!r} is not one of {list(SPEC.cls_classes)}")
    # Masks first: they check the polygons.
    masks = []
    for name in SPEC.seg_classes:
        masks.append(encode_mask(fill_polygons([shape_ for title, _, shape_ in instances if title == name], *shape)))
    boxes = []
    for name, box, polygon in instances:
        if rule == "polygons":
            # Vertices are pixel centres; the outline belongs to the polygon.
            low, high = np.min(polygon, axis=0), np.max(polygon, axis=0) + 1
            box = [*low, *high]
        boxes.append((name, clip_box(box, shape)))
    present = {name for name, _, _ in instances}
    return {"labels": [int(name in present) for name in SPEC.cls_classes], "boxes": boxes, "masks": masks}


if __name__ == "__main__":
    sys.exit(main())
