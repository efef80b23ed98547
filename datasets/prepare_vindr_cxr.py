"""VinDr-CXR: six image-level labels; three readers in train, their consensus in test.

Example: python datasets/prepare_vindr_cxr.py vindr-cxr --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import index_files, read_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["vindr_cxr"]
VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
ENDINGS = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")
"""The release has .dicom files; converted copies in the same folders also work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--readers",
        choices=("any", "majority"),
        default="any",
        help="a label in train is positive if any reader, or more than half of them, say so (default %(default)s)",
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image in the two label tables, annotated with its labels."""
    cases = []
    for split in ("train", "test"):
        votes = read_votes(args.source / "annotations" / f"image_labels_{split}.csv")
        files = find_images(args.source, split)
        for image, rows in votes.items():
            needed = 0 if args.readers == "any" else len(rows) / 2
            labels = [int(sum(column) > needed) for column in zip(*rows, strict=True)]
            path = files.get(image, args.source / split / f"{image}.dicom")
            cases.append(Case(image=path, patient_id=image, split=split, annotation=labels))
    note = f"train labels: {args.readers} of the readers; every image is a separate patient"
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note=note)


def find_images(source: Path, split: str) -> dict[str, Path]:
    """The images of a split by id. The release does not identify patients; the image id is used instead."""
    return index_files(source / split, ENDINGS)


def read_votes(table: Path) -> dict[str, list[list[int]]]:
    """The labels of each image, one list per reader, in the order of the row's classes."""
    votes: dict[str, list[list[int]]] = defaultdict(list)
    for row in read_rows(table, ("image_id", *SPEC.cls_classes)):
        for name in SPEC.cls_classes:
            if row[name] not in VALUES:
                raise FXError(f"{table}: image {row['image_id']!r}, column {name!r}: {row[name]!r} is not 0 or 1")
        votes[row["image_id"]].append([VALUES[row[name]] for name in SPEC.cls_classes])
    return votes


def annotate(labels: Sequence[int], shape: tuple[int, int]) -> Mapping[str, Any]:
    """The labels."""
    return {"labels": labels}


if __name__ == "__main__":
    sys.exit(main())
