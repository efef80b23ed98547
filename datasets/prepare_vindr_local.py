"""VinDr-CXR local findings: fused boxes of three readers in train, their consensus in test.

Example: python datasets/prepare_vindr_local.py vindr-cxr --output datasets/prepared
Reads annotations/annotations_{train,test}.csv of PhysioNet, or train.csv of the competition, without test labels.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prepare_vindr_cxr import find_images

from fx_d2.data.derived_boxes import clip_box, fuse_boxes
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import read_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import DatasetSpec, FXError

SPEC = BY_NAME["vindr_local"]
RARE = (
    "Clavicle fracture", "Edema", "Emphysema", "Enlarged PA", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Rib fracture",
)  # fmt: skip
"""Findings of the PhysioNet release beyond the fourteen of the competition."""
ALL_SPEC = replace(
    SPEC,
    name="vindr_local22",
    title="VinDr-CXR local findings (22)",
    loc_classes=tuple(sorted(SPEC.loc_classes + RARE)),
)
NO_FINDING = "No finding"
OTHER = "Other lesion"
CORNERS = ("x_min", "y_min", "x_max", "y_max")

Drawn = tuple[str, str, list[float]]
"""Reader, class and corners of a box."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument("--classes", type=int, choices=(14, 22), default=14, help="22 creates dataset vindr_local22")
    parser.add_argument(
        "--rare", choices=("other", "drop"), default="other", help=f"with 14 classes, map the rest to {OTHER!r} or drop"
    )
    parser.add_argument(
        "--fusion", choices=("wbf", "union"), default="wbf", help="fuse the readers' boxes or keep all (default wbf)"
    )
    parser.add_argument("--fusion-iou", type=float, default=0.5, metavar="X", help="IoU threshold (default 0.5)")
    parser.add_argument("--min-readers", type=int, default=1, metavar="N", help="readers that must agree (default 1)")
    parser.add_argument(
        "--unlisted",
        choices=("error", "negative"),
        default="error",
        help="treat images without any row as an error or as negative (default error)",
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image in the folders, annotated with the boxes of all readers."""
    if not 0 < args.fusion_iou < 1:
        raise FXError(f"--fusion-iou is {args.fusion_iou}; it must be between 0 and 1")
    spec = SPEC if args.classes == 14 else ALL_SPEC
    competition = args.source / "train.csv"
    tables = {split: args.source / "annotations" / f"annotations_{split}.csv" for split in ("train", "test")}
    if competition.is_file() and not tables["train"].is_file():
        tables = {"train": competition}
    cases = []
    for split, table in tables.items():
        drawn = read_boxes(table, spec, args.rare)
        files = find_images(args.source, split)
        missing = [image for image in files if image not in drawn]
        if missing and args.unlisted == "error":
            raise FXError(
                f"{table}: no row for image {missing[0]!r} ({len(missing)} such images); if they have no findings: "
                "--unlisted negative"
            )
        for image in sorted({*files, *drawn}):
            path = files.get(image, args.source / split / f"{image}.dicom")
            official = split if len(tables) > 1 else ""
            cases.append(Case(image=path, patient_id=image, split=official, annotation=drawn.get(image, [])))
    fusion = f"{args.fusion} of the readers above IoU {args.fusion_iou}" if args.fusion == "wbf" else args.fusion
    note = f"train boxes: {fusion}, at least {args.min_readers} readers; every image is a separate patient"
    work = partial(annotate, args.fusion, args.fusion_iou, args.min_readers)
    return Plan(spec=spec, root=args.source, cases=cases, annotate=work, note=note)


def read_boxes(table: Path, spec: DatasetSpec, rare: str) -> dict[str, list[Drawn]]:
    """The boxes of each image in the table; none for "No finding"."""
    known = {name.lower(): name for name in spec.loc_classes}
    known |= {name.lower(): OTHER if rare == "other" else "" for name in RARE if name not in spec.loc_classes}
    drawn: dict[str, list[Drawn]] = defaultdict(list)
    for row in read_rows(table, ("image_id", "class_name", *CORNERS), optional=("rad_id",)):
        image, name = row["image_id"], row["class_name"]
        boxes = drawn[image]
        if name == NO_FINDING:
            continue
        if name.lower() not in known:
            raise FXError(f"{table}: image {image!r}: class {name!r} is not one of {sorted(known)}")
        try:
            corners = [float(row[corner]) for corner in CORNERS]
        except ValueError:
            raise FXError(f"{table}: image {image!r}: {name!r} has a corner that is not a number") from None
        if known[name.lower()]:
            boxes.append((row["rad_id"], known[name.lower()], corners))
    return drawn


def annotate(
    fusion: str, min_iou: float, min_readers: int, drawn: Sequence[Drawn], shape: tuple[int, int]
) -> Mapping[str, Any]:
    """Boxes of one image; readers' boxes are fused per class, consensus boxes (no reader) are kept unchanged."""
    boxes: list[tuple[str, list[float]]] = []
    for name in dict.fromkeys(name for _, name, _ in drawn):
        found = [(reader, clip_box(corners, shape)) for reader, title, corners in drawn if title == name]
        rectangles = [box for _, box in found]
        if not all(reader for reader, _ in found):
            boxes += [(name, box) for box in rectangles]
            continue
        for box, group in zip(*fuse_boxes(rectangles, min_iou), strict=True):
            if len({found[i][0] for i in group}) >= min_readers:
                boxes += [(name, box)] if fusion == "wbf" else [(name, rectangles[i]) for i in group]
    return {"boxes": boxes}


if __name__ == "__main__":
    sys.exit(main())
