"""CheXpert: fourteen labels from the report labeller, with blank and uncertain ones; official splits.

Example: python datasets/prepare_chexpert.py CheXpert-v1.0 --output datasets/prepared
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import read_rows
from fx_d2.data.report_labels import read_labels
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["chexpert"]
PATH = re.compile(r"(?:^|/)((?:train|valid|test)/(patient\d+)/(study\d+)/[^/]*_(frontal|lateral)\.jpg)$")
"""The relevant part of column Path; the leading folder differs between copies of the release."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--views", choices=("all", "frontal", "lateral"), default="all", help="which views (default %(default)s)"
    )
    parser.add_argument(
        "--test-labels", type=Path, metavar="FILE", help="table of the test split (default: test.csv, if it exists)"
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per table row, annotated with the raw labels, including uncertain and blank ones."""
    test = args.test_labels or args.source / "test.csv"
    tables = {"train": args.source / "train.csv", "val": args.source / "valid.csv"}
    tables |= {"test": test} if args.test_labels or test.is_file() else {}
    cases = []
    for split, table in tables.items():
        seen = set()
        for row in read_rows(table, ("Path", *SPEC.cls_classes), optional=("Sex", "Age", "AP/PA")):
            match = PATH.search(row["Path"])
            if match is None or match[1] in seen:
                problem = "occurs twice" if match else "is not <split>/patient<n>/study<n>/view<n>_<view>.jpg"
                raise FXError(f"{table}: Path {row['Path']!r} {problem}")
            seen.add(match[1])
            if args.views not in ("all", match[4]):
                continue
            view = row["AP/PA"] if match[4] == "frontal" else "lateral"
            meta = {"sex": row["Sex"][:1], "age": int(row["Age"]) if row["Age"].isdigit() else None, "view": view}
            cases.append(
                Case(
                    image=args.source / match[1],
                    patient_id=match[2],
                    study_id=f"{match[2]}/{match[3]}",
                    split=split,
                    annotation=read_labels(row, SPEC.cls_classes, f"{table}: {match[1]}"),
                    meta={key: value for key, value in meta.items() if value},
                )
            )
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note=f"views: {args.views}")


def annotate(labels: Sequence[int | None], shape: tuple[int, int]) -> Mapping[str, Any]:
    """The labels."""
    return {"labels": labels}


if __name__ == "__main__":
    sys.exit(main())
