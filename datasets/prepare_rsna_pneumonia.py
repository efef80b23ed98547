"""RSNA Pneumonia Detection Challenge 2018, stage 2: three image classes and lung opacity boxes.

Example: python datasets/prepare_rsna_pneumonia.py rsna-pneumonia --output datasets/prepared
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fx_d2.data.derived_boxes import clip_box
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import index_files, read_json, read_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["rsna_pneumonia"]
OPACITY = SPEC.loc_classes[0]
MAPPING_COLUMNS = ("subset_img_id", "img_id")
"""Image name in the challenge and in ChestX-ray14: 00000123_004.png, which starts with the patient."""

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--nih-mapping",
        type=Path,
        metavar="FILE",
        help=f"mapping of the challenge to ChestX-ray14, json or csv with {' and '.join(MAPPING_COLUMNS)}, to identify "
        "patients",
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image, annotated with (class, boxes)."""
    boxes = read_boxes(args.source / "stage_2_train_labels.csv")
    classes = read_classes(args.source / "stage_2_detailed_class_info.csv")
    for image in {*boxes, *classes}:
        if image not in boxes or image not in classes or bool(boxes[image]) != (classes[image] == OPACITY):
            known = f"class {classes.get(image)!r} and {len(boxes.get(image, ()))} boxes"
            raise FXError(f"{args.source}: image {image!r} has {known} in the two tables, which contradict each other")
    patients = read_patients(args.nih_mapping) if args.nih_mapping else {}
    lost = [image for image in boxes if image not in patients]
    if patients and lost:
        raise FXError(f"{args.nih_mapping}: has no row for image {lost[0]!r} ({len(lost)} such images)")
    if not patients:
        logger.warning("every image is treated as a separate patient: give --nih-mapping to identify patients")
    folder = args.source / "stage_2_train_images"
    files = index_files(folder, (".dcm", ".png"))
    cases = [
        Case(
            image=files.get(image, folder / f"{image}.dcm"),
            patient_id=patients.get(image, image),
            annotation=(classes[image], found),
        )
        for image, found in boxes.items()
    ]
    note = "patients by ChestX-ray14" if patients else "every image is a separate patient"
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note=note)


def read_boxes(table: Path) -> dict[str, list[list[float]]]:
    """Boxes [x, y, w, h] by image; an empty list for Target 0."""
    sides = ("x", "y", "width", "height")
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    for row in read_rows(table, ("patientId", *sides, "Target")):
        found, image = boxes[row["patientId"]], row["patientId"]
        try:
            if int(row["Target"]):
                found.append([float(row[side]) for side in sides])
        except ValueError:
            raise FXError(f"{table}: image {image!r}: {row} holds something that is not a number") from None
    return boxes


def read_classes(table: Path) -> dict[str, str]:
    """The class of each image, which is repeated in all of its rows."""
    classes: dict[str, str] = {}
    for row in read_rows(table, ("patientId", "class")):
        image, name = row["patientId"], row["class"]
        if name not in SPEC.cls_classes:
            raise FXError(f"{table}: image {image!r}: class {name!r} is not one of {list(SPEC.cls_classes)}")
        if classes.setdefault(image, name) != name:
            raise FXError(f"{table}: image {image!r} has two classes, {classes[image]!r} and {name!r}")
    return classes


def read_patients(mapping: Path) -> dict[str, str]:
    """The ChestX-ray14 patient of each image."""
    json_rows = mapping.suffix.lower() == ".json"
    patients: dict[str, str] = {}
    for row in read_json(mapping, list) if json_rows else read_rows(mapping, MAPPING_COLUMNS):
        try:
            image, nih = (str(row[column]) for column in MAPPING_COLUMNS)
        except (KeyError, TypeError):
            raise FXError(f"{mapping}: every entry needs {' and '.join(MAPPING_COLUMNS)}; one is {row!r}") from None
        patient, underscore, _ = nih.partition("_")
        if not underscore or not patient.isdigit():
            raise FXError(f"{mapping}: {nih!r} is not a ChestX-ray14 image name such as 00000123_004.png")
        patients[image] = patient
    return patients


def annotate(annotation: tuple[str, list[list[float]]], shape: tuple[int, int]) -> Mapping[str, Any]:
    """One-hot labels of the three classes, and boxes; an image without boxes is a true negative."""
    label, boxes = annotation
    return {
        "labels": [int(name == label) for name in SPEC.cls_classes],
        "boxes": [(OPACITY, clip_box((x, y, x + w, y + h), shape)) for x, y, w, h in boxes],
    }


if __name__ == "__main__":
    sys.exit(main())
