"""VinDr-CXR local findings: boxes of three readers fused in train, their consensus in test.

Example: python datasets/prepare_vindr_local.py vindr-cxr --output datasets/prepared
Reads PhysioNet's annotations/annotations_{train,test}.csv, or the competition's train.csv, which has no test labels.
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
"""Findings of PhysioNet's release beyond the fourteen of the competition."""
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
    parser.add_argument("--classes", type=int, choices=(14, 22), default=14, help="22 makes a row vindr_local22")
    parser.add_argument(
        "--rare", choices=("other", "drop"), default="other", help=f"of 14, the rest is {OTHER!r} or left out"
    )
    parser.add_argument(
        "--fusion", choices=("wbf", "union"), default="wbf", help="fuse the readers' boxes or keep all (default wbf)"
    )
    parser.add_argument("--fusion-iou", type=float, default=0.5, metavar="X", help="overlap of one thing (default 0.5)")
    parser.add_argument("--min-readers", type=int, default=1, metavar="N", help="readers that must agree (default 1)")
    parser.add_argument(
        "--unlisted",
        choices=("error", "negative"),
        default="error",
        help="what an image without any row is: a fault of the download, or without findings (default error)",
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """A case an image of the folders; its annotation are the boxes that were drawn on it."""
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
                f"{table}: no row for image {missing[0]!r} ({len(missing)} such images); if they are without findings: "
                "--unlisted negative"
            )
        for image in sorted({*files, *drawn}):
            path = files.get(image, args.source / split / f"{image}.dicom")
            official = split if len(tables) > 1 else ""
            cases.append(Case(image=path, patient_id=image, split=official, annotation=drawn.get(image, [])))
    fusion = f"{args.fusion} of the readers above IoU {args.fusion_iou}" if args.fusion == "wbf" else args.fusion
    note = f"train boxes: {fusion}, at least {args.min_readers} readers; each image a patient of its own"
    work = partial(annotate, args.fusion, args.fusion_iou, args.min_readers)
    return Plan(spec=spec, root=args.source, cases=cases, annotate=work, note=note)


def read_boxes(table: Path, spec: DatasetSpec, rare: str) -> dict[str, list[Drawn]]:
    """The boxes of each image that the table names; "No finding" gives none."""
    known = {name.lower(): name for name in spec.loc_classes}
    known |= {name.lower(): OTHER if rare == "other" else "" for name in RARE if name not in spec.loc_classes}
    drawn: dict[str, list[Drawn]] = defaultdict(list)
    for row in read_rows(table, ("image_id", "class_name", *CORNERS), optional=("rad_id",)):
        image, name = row["image_id"], row["class_name"]
        boxes = drawn[image]
        if name == NO_FINDING:
            continue
        if name.lower() not in known:
            raise FXError(f"{table}: image {image!r}: class {name!r} is none of {sorted(known)}")
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
    """Boxes of one image; those of readers are fused class by class, a consensus (no reader named) is left as it is."""
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
