"""JSRT with the masks of SCR: heart, lungs and clavicles.

Example: python datasets/prepare_jsrt.py JSRT --scr SCR --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fx_d2.data.codecs import merge_masks, read_mask_file
from fx_d2.data.masks import encode_mask
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import index_files
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["jsrt"]
FOLDERS = {
    "Heart": ("heart",),
    "Lungs": ("left lung", "right lung"),
    "Clavicles": ("left clavicle", "right clavicle"),
}
"""SCR's folders of each class; its masks have half the film's size."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument("--scr", type=Path, required=True, metavar="DIR", help="folder of SCR, with fold1 and fold2")
    parser.add_argument(
        "--test-fold", type=int, choices=(1, 2), help="train on the other fold of SCR (default: patients are drawn)"
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """A case a film; its annotation are the mask files of each class. Each film shows a patient of its own."""
    films = index_files(args.source, (".img",))
    folds = {fold: find_masks(args.scr / f"fold{fold}" / "masks") for fold in (1, 2)}
    cases = []
    for name, path in films.items():
        found = [fold for fold, masks in folds.items() if name in masks]
        if len(found) != 1:
            raise FXError(f"{path}: {len(found)} of the two folds of {args.scr} have masks of it, not one")
        split = "" if args.test_fold is None else "test" if found[0] == args.test_fold else "train"
        cases.append(Case(image=path, patient_id=name, split=split, annotation=folds[found[0]][name]))
    lost = sorted({name for masks in folds.values() for name in masks} - set(films))
    if lost:
        raise FXError(f"{args.source}: has no {lost[0]}.IMG, of which {args.scr} has masks")
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note="masks of SCR")


def find_masks(folder: Path) -> dict[str, list[list[str]]]:
    """By film, the files of each class; FXError where a structure lacks one."""
    files = {part: index_files(folder / part, (".gif",)) for parts in FOLDERS.values() for part in parts}
    names = sorted({name for found in files.values() for name in found})
    for part, found in files.items():
        if lost := [name for name in names if name not in found]:
            raise FXError(f"{folder / part}: has no mask of {lost[0]}")
    return {name: [[str(files[part][name]) for part in FOLDERS[title]] for title in SPEC.seg_classes] for name in names}


def annotate(files: Sequence[Sequence[str]], shape: tuple[int, int]) -> Mapping[str, Any]:
    """The masks, each pixel becoming four."""
    masks = []
    for parts in files:
        merged = merge_masks([read_mask_file(Path(part)) for part in parts])
        if (2 * merged.shape[0], 2 * merged.shape[1]) != shape:
            raise FXError(f"{parts[0]}: the mask is of {merged.shape}, which is not half of the film's {shape}")
        masks.append(encode_mask(np.repeat(np.repeat(merged, 2, axis=0), 2, axis=1)))
    return {"masks": masks}


if __name__ == "__main__":
    sys.exit(main())
