"""CANDID-PTX: pneumothorax labels, boxes and masks from the run-length codes in Pneumothorax_reports.csv.

Example: python datasets/prepare_candid_ptx.py CANDID-PTX --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fx_d2.data.codecs import decode_relative_rle
from fx_d2.data.derived_boxes import MASK_RULES, annotate_from_masks
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import index_files, read_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["candid_ptx"]
PATIENTS = {"filename": "filename", "study": "StudyInstanceUID", "image": "SOPInstanceUID"}
"""Column with the patient; in `filename` it is the part before the first underscore."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--boxes",
        choices=MASK_RULES,
        default="annotations",
        help="boxes from these parts of the masks (default %(default)s)",
    )
    parser.add_argument(
        "--patients",
        choices=PATIENTS,
        default="filename",
        help="column that identifies patients (default %(default)s)",
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image in the table, annotated with its list of codes. Images without a row are skipped."""
    table, column = args.source / "Pneumothorax_reports.csv", PATIENTS[args.patients]
    codes: dict[str, list[str]] = defaultdict(list)
    patients: dict[str, str] = {}
    for row in read_rows(table, ("SOPInstanceUID", "EncodedPixels", column)):
        image, patient = row["SOPInstanceUID"], row[column]
        if args.patients == "filename":
            patient, underscore, _ = patient.partition("_")
            patient = patient if underscore else ""
        if not patient:
            raise FXError(f"{table}: image {image!r}: no patient in column {column!r}; see --patients")
        if patients.setdefault(image, patient) != patient:
            raise FXError(f"{table}: image {image!r} has two patients, {patients[image]} and {patient}")
        codes[image].append(row["EncodedPixels"])
    folder = args.source / "dataset"
    files = index_files(folder, (".dcm", ""))
    cases = [
        Case(image=files.get(image, folder / image), patient_id=patients[image], annotation=rows)
        for image, rows in codes.items()
    ]
    note = f"boxes: {args.boxes} of the masks; patients by {column}"
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=partial(annotate, args.boxes), note=note)


def annotate(rule: str, codes: Sequence[str], shape: tuple[int, int]) -> Mapping[str, Any]:
    """Label, boxes and mask of an image; none if a code is blank, as the image was not annotated."""
    if "" in codes:
        return {}
    masks = [decode_relative_rle(code, *shape) for code in codes]
    return annotate_from_masks(SPEC, {SPEC.seg_classes[0]: masks}, shape, rule)


if __name__ == "__main__":
    sys.exit(main())
