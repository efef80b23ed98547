"""VinDr-CXR organs: CheXmask masks of heart and lungs, and their extents as boxes.

Example: python datasets/prepare_vindr_organs.py vindr-cxr --chexmask chexmask/OriginalResolution/VinDr-CXR.csv \\
    --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prepare_vindr_cxr import find_images

from fx_d2.data.codecs import decode_absolute_rle
from fx_d2.data.derived_boxes import annotate_from_masks
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import read_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["vindr_organs"]


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--chexmask", type=Path, required=True, metavar="FILE", help="CheXmask's OriginalResolution/VinDr-CXR.csv[.gz]"
    )
    parser.add_argument(
        "--halves",
        action="store_true",
        help="as in the paper: with train images sorted by id, use boxes of the first half and masks of the second",
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per CheXmask row, annotated with (tasks, stated height and width, codes of the classes)."""
    folders = {split: find_images(args.source, split) for split in ("train", "test")}
    first = sorted(folders["train"])[: len(folders["train"]) // 2] if args.halves else []
    boxes_only = set(first)
    cases, seen = [], set()
    for row in read_rows(args.chexmask, ("image_id", "Height", "Width", *SPEC.seg_classes)):
        image = row["image_id"]
        split = next((split for split, files in folders.items() if image in files), "")
        if not split or image in seen:
            problem = "occurs twice" if image in seen else "is neither in train nor in test of the release"
            raise FXError(f"{args.chexmask}: image {image!r} {problem}")
        seen.add(image)
        tasks = ("loc", "seg") if split == "test" or not args.halves else ("loc",) if image in boxes_only else ("seg",)
        annotation = (tasks, (row["Height"], row["Width"]), [row[name] for name in SPEC.seg_classes])
        cases.append(Case(image=folders[split][image], patient_id=image, split=split, annotation=annotation))
    note = "boxes of the first half of train, masks of the second" if args.halves else ""
    return Plan(
        spec=SPEC, root=args.source, cases=sorted(cases, key=lambda case: case.image), annotate=annotate, note=note
    )


def annotate(
    annotation: tuple[Sequence[str], tuple[str, str], Sequence[str]], shape: tuple[int, int]
) -> Mapping[str, Any]:
    """Masks of the organs and their extents as boxes; an organ with an empty code is absent."""
    tasks, stated, codes = annotation
    if stated != (str(shape[0]), str(shape[1])):
        raise FXError(
            f"masks are {stated[0]} x {stated[1]}, but the image is {shape[0]} x {shape[1]}: use OriginalResolution"
        )
    masks = {name: [decode_absolute_rle(code, *shape)] for name, code in zip(SPEC.seg_classes, codes, strict=True)}
    fields = annotate_from_masks(SPEC, masks, shape, "extent")
    return {"boxes": fields["boxes"] if "loc" in tasks else None, "masks": fields["masks"] if "seg" in tasks else None}


if __name__ == "__main__":
    sys.exit(main())
