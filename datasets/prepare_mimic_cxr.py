"""MIMIC-CXR-JPG: fourteen labels extracted from reports, joined from three tables; official splits.

Example: python datasets/prepare_mimic_cxr.py mimic-cxr-jpg --output datasets/prepared
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import read_rows
from fx_d2.data.report_labels import read_labels
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["mimic_cxr"]
SPLIT = {"train": "train", "validate": "val", "test": "test"}
FRONTAL = ("AP", "PA")

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--labels", choices=("chexpert", "negbio"), default="chexpert", help="labeller (default %(default)s)"
    )
    parser.add_argument("--views", choices=("all", "frontal"), default="all", help="which views (default %(default)s)")
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per row of the split table, annotated with the labels of its study, None if the table has none."""
    labels = {}
    table = find_table(args.source, args.labels)
    for row in read_rows(table, ("subject_id", "study_id", *SPEC.cls_classes)):
        if row["study_id"] in labels:
            raise FXError(f"{table}: study {row['study_id']} occurs twice")
        labels[row["study_id"]] = read_labels(row, SPEC.cls_classes, f"{table}: study {row['study_id']}")
    views = {
        row["dicom_id"]: row["ViewPosition"]
        for row in read_rows(find_table(args.source, "metadata"), ("dicom_id", "ViewPosition"))
    }
    cases, table = [], find_table(args.source, "split")
    for row in read_rows(table, ("dicom_id", "study_id", "subject_id", "split")):
        image, study, patient = row["dicom_id"], row["study_id"], row["subject_id"]
        if row["split"] not in SPLIT or image not in views:
            problem = f"has no row in {find_table(args.source, 'metadata').name}"
            problem = problem if row["split"] in SPLIT else f"has split {row['split']!r}, not one of {list(SPLIT)}"
            raise FXError(f"{table}: image {image!r} {problem}")
        if args.views == "frontal" and views[image] not in FRONTAL:
            continue
        cases.append(
            Case(
                image=args.source / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{image}.jpg",
                patient_id=patient,
                study_id=study,
                split=SPLIT[row["split"]],
                annotation=labels.get(study),
                meta={"view": views[image]} if views[image] else {},
            )
        )
    bare = [case for case in cases if case.annotation is None]
    if bare:
        known = f"{len({case.study_id for case in bare})} studies have no row in the label table"
        logger.warning("%s: their %d images are not annotated, such as %s", known, len(bare), bare[0].image.name)
    return Plan(
        spec=SPEC,
        root=args.source,
        cases=cases,
        annotate=annotate,
        release=table.name.removeprefix("mimic-cxr-").partition("-split")[0],
        note=f"labels: {args.labels}; views: {args.views}",
    )


def find_table(source: Path, name: str) -> Path:
    """The table `name` of the release, of any version, gzipped or not; FXError unless there is exactly one."""
    found = sorted(source.glob(f"mimic-cxr-*-{name}.csv*"))
    if len(found) != 1:
        raise FXError(f"{source}: {len(found)} files mimic-cxr-<version>-{name}.csv[.gz], expected one")
    return found[0]


def annotate(labels: Sequence[int | None] | None, shape: tuple[int, int]) -> Mapping[str, Any]:
    """The labels of the image's study, if any."""
    return {"labels": labels}


if __name__ == "__main__":
    sys.exit(main())
