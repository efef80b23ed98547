"""VinDr-RibCXR: masks of twenty ribs, one contour each; official train and val splits.

Example: python datasets/prepare_vindr_ribcxr.py VinDr-RibCXR --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fx_d2.data.codecs import decode_points
from fx_d2.data.masks import encode_mask
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import find_file, index_files, read_json
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["vindr_ribcxr"]


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--without-contour",
        choices=("absent", "unknown"),
        default="absent",
        help='meaning of "None" instead of a contour (default %(default)s)',
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image in the two JSON files, annotated with its rib contours. Patients are unknown."""
    cases = []
    files = index_files(args.source, (".png", ".jpg", ".jpeg"))
    for split in ("train", "val"):
        table = find_file(args.source, (f"Vindr_RibCXR_{split}_mask.json",))
        columns = read_json(table, dict)
        lost = [name for name in ("img", *SPEC.seg_classes) if not isinstance(columns.get(name), dict)]
        if lost:
            raise FXError(f"{table}: no column {lost[0]!r} by image number; it has {sorted(columns)}")
        for number, path in columns["img"].items():
            name = str(path).rpartition("/")[2].rpartition(".")[0]
            incomplete = [rib for rib in SPEC.seg_classes if number not in columns[rib]]
            if incomplete:
                raise FXError(f"{table}: column {incomplete[0]!r} has no image number {number} ({name})")
            contours = [columns[rib][number] for rib in SPEC.seg_classes]
            image = files.get(name, args.source / str(path))
            cases.append(Case(image=image, patient_id=name, split=split, annotation=contours))
    note = f"a rib without contour is {args.without_contour}; every image is a separate patient"
    work = partial(annotate, args.without_contour == "unknown")
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=work, note=note)


def annotate(unknown: bool, contours: Sequence[Any], shape: tuple[int, int]) -> Mapping[str, Any]:
    """One mask per rib."""
    masks = [decode_points(contour, *shape) for contour in contours]
    return {"masks": [encode_mask(mask) if mask.any() or not unknown else None for mask in masks]}


if __name__ == "__main__":
    sys.exit(main())
