"""SIIM-ACR: pneumothorax labels, boxes and masks from the run-length codes of the challenge.

Example: python datasets/prepare_siim_acr.py siim-acr --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fx_d2.data.codecs import decode_relative_rle
from fx_d2.data.derived_boxes import MASK_RULES, annotate_from_masks
from fx_d2.data.dicom import dicom_tags
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import find_file, index_files, read_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["siim_acr"]
TABLES = ("train-rle.csv", "stage_2_train.csv")


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--boxes",
        choices=MASK_RULES,
        default="annotations",
        help="boxes from these parts of the masks (default %(default)s)",
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help=f"label table (default: {' or '.join(TABLES)})")
    parser.add_argument(
        "--patients",
        choices=("dicom", "image"),
        default="dicom",
        help="patients by the DICOM tag PatientID, or one per image (default %(default)s)",
    )
    parser.add_argument("--test-folder", action="store_true", help="images in dicom-images-test become the test split")
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image in the table, annotated with its list of codes. Images without a row are skipped."""
    table = args.labels or find_file(args.source, TABLES)
    codes: dict[str, list[str]] = defaultdict(list)
    for row in read_rows(table, ("ImageId", "EncodedPixels")):
        codes[row["ImageId"]].append(row["EncodedPixels"])
    files = index_files(args.source, (".dcm",))
    paths = {image: files.get(image, args.source / f"{image}.dcm") for image in codes}
    patients = find_patients(paths) if args.patients == "dicom" else {image: image for image in paths}
    cases = []
    for image, rows in codes.items():
        place = paths[image].relative_to(args.source).parts
        official = "" if not args.test_folder else "test" if "dicom-images-test" in place else "train"
        cases.append(Case(image=paths[image], patient_id=patients[image], split=official, annotation=rows))
    note = f"{table.name}; boxes: {args.boxes} of the masks; patients by {args.patients}"
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=partial(annotate, args.boxes), note=note)


def find_patients(paths: Mapping[str, Path]) -> dict[str, str]:
    """The PatientID of each existing file; FXError if it is blank, or the same for all."""
    patients = {image: dicom_tags(path, ("PatientID",))["PatientID"] for image, path in paths.items() if path.is_file()}
    blank = next((image for image, patient in patients.items() if not patient), None)
    if blank is not None or (len(patients) > 1 and len(set(patients.values())) == 1):
        where = f"{paths[blank]}: PatientID is blank" if blank is not None else "PatientID is the same for all images"
        raise FXError(f"{where}: patients cannot be identified; --patients image treats every image as a patient")
    return {image: patients.get(image, image) for image in paths}


def annotate(rule: str, codes: Sequence[str], shape: tuple[int, int]) -> Mapping[str, Any]:
    """Label, boxes and mask of an image from all of its rows."""
    masks = [decode_relative_rle(code, *shape) for code in codes]
    return annotate_from_masks(SPEC, {SPEC.seg_classes[0]: masks}, shape, rule)


if __name__ == "__main__":
    sys.exit(main())
