"""NIH ChestX-ray14: fourteen image-level findings; official test list, validation sampled by patient.

Example: python datasets/prepare_nih_chestxray14.py ChestX-ray14 --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fx_d2.data.folder_tables import read_names
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import find_file, index_files, read_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["nih_chestxray14"]
TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
HEALTHY = "No Finding"
VAL_SHARE = 11212 / (75312 + 11212)
"""Fraction of the official training and validation list, as in the commonly used lists, also split by patient."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.set_defaults(val_share=VAL_SHARE)
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per table row, annotated with the names of its findings."""
    table = find_file(args.source, TABLES)
    lists = {"train": "train_val_list.txt", "test": "test_list.txt"}
    owner: dict[str, str] = {}
    for split, file in lists.items():
        for name in read_names(find_file(args.source, (file,))):
            if owner.setdefault(name, split) != split:
                raise FXError(f"{args.source}: image {name!r} is in {lists['train']} and in {file}")
    files = index_files(args.source, (".png",))
    cases, seen = [], set()
    for row in read_rows(table, COLUMNS, optional=("Patient Age", "Patient Gender", "View Position")):
        name = row["Image Index"]
        if name in seen or name not in owner:
            problem = "occurs twice" if name in seen else f"is neither in {lists['train']} nor in {lists['test']}"
            raise FXError(f"{table}: image {name!r} {problem}")
        seen.add(name)
        stem = name.removesuffix(".png")
        age = row["Patient Age"].rstrip("Y").lstrip("0")
        meta = {"sex": row["Patient Gender"], "age": int(age) if age.isdigit() else None, "view": row["View Position"]}
        cases.append(
            Case(
                image=files.get(stem, args.source / "images" / name),
                patient_id=row["Patient ID"],
                split=owner[name],
                annotation=row["Finding Labels"].split("|"),
                meta={key: value for key, value in meta.items() if value},
            )
        )
    unlisted = sorted(set(owner) - seen)
    if unlisted:
        raise FXError(f"{table}: image {unlisted[0]!r} in the lists has no row ({len(unlisted)} such images)")
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note=table.name)


def annotate(findings: Sequence[str], shape: tuple[int, int]) -> Mapping[str, Any]:
    """The labels; all 0 for "No Finding"."""
    strange = sorted(set(findings) - {HEALTHY, *SPEC.cls_classes})
    if strange or (HEALTHY in findings and len(findings) > 1):
        raise FXError(f"Finding Labels {'|'.join(findings)!r} must be {HEALTHY!r} or some of {list(SPEC.cls_classes)}")
    return {"labels": [int(name in findings) for name in SPEC.cls_classes]}


if __name__ == "__main__":
    sys.exit(main())
