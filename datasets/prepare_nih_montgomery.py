"""NIH Montgomery: one mask of both lungs.

Example: python datasets/prepare_nih_montgomery.py MontgomerySet --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fx_d2.data.codecs import merge_masks, read_mask_file
from fx_d2.data.masks import encode_mask
from fx_d2.data.nlm_readings import name_parts, read_reading
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import index_files
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["nih_montgomery"]
FOLDERS = ("leftMask", "rightMask")


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    return run(make_parser(__doc__), make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image in CXR_png, annotated with its two mask files."""
    cases = []
    for name, path in index_files(args.source / "CXR_png", (".png",)).items():
        patient, label = name_parts(name, "MCUCXR", path)
        masks = [str(args.source / "ManualMask" / folder / f"{name}.png") for folder in FOLDERS]
        meta = read_reading(args.source / "ClinicalReadings" / f"{name}.txt") | {"tuberculosis": label}
        cases.append(Case(image=path, patient_id=patient, annotation=masks, meta=meta))
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note="every image is a separate patient")


def annotate(files: Sequence[str], shape: tuple[int, int]) -> Mapping[str, Any]:
    """The union of both lungs."""
    masks = []
    for file in files:
        masks.append(read_mask_file(Path(file)))
        if masks[-1].shape != shape:
            raise FXError(f"{file}: the mask has shape {masks[-1].shape}, but the image has {shape}")
    return {"masks": [encode_mask(merge_masks(masks))]}


if __name__ == "__main__":
    sys.exit(main())
