"""NIH Shenzhen: tuberculosis labels from the file names.

Example: python datasets/prepare_nih_shenzhen.py ChinaSet_AllFiles --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fx_d2.data.nlm_readings import name_parts, read_reading
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import index_files
from fx_d2.data.table import BY_NAME

SPEC = BY_NAME["nih_shenzhen"]


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    return run(make_parser(__doc__), make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image in CXR_png, annotated with its label. Every image is a separate patient."""
    cases = []
    for name, path in index_files(args.source / "CXR_png", (".png",)).items():
        patient, label = name_parts(name, "CHNCXR", path)
        meta = read_reading(args.source / "ClinicalReadings" / f"{name}.txt")
        cases.append(Case(image=path, patient_id=patient, annotation=label, meta=meta))
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note="every image is a separate patient")


def annotate(label: int, shape: tuple[int, int]) -> Mapping[str, Any]:
    """The label."""
    return {"labels": [label]}


if __name__ == "__main__":
    sys.exit(main())
