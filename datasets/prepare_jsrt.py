"""JSRT with the SCR masks of heart, lungs and clavicles.

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
"""SCR folders of each class; the masks are half the size of the images."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument("--scr", type=Path, required=True, metavar="DIR", help="folder of SCR, with fold1 and fold2")
    parser.add_argument(
        "--test-fold",
        type=int,
        choices=(1, 2),
        help="test on this SCR fold, train on the other (default: random split)",
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image, annotated with the mask files of each class. Every image is a separate patient."""
    films = index_files(args.source, (".img",))
    folds = {fold: find_masks(args.scr / f"fold{fold}" / "masks") for fold in (1, 2)}
    cases = []
    for name, path in films.items():
        found = [fold for fold, masks in folds.items() if name in masks]
        if len(found) != 1:
            raise FXError(f"{path}: {len(found)} of the two folds in {args.scr} have masks for it, expected one")
        split = "" if args.test_fold is None else "test" if found[0] == args.test_fold else "train"
        cases.append(Case(image=path, patient_id=name, split=split, annotation=folds[found[0]][name]))
    lost = sorted({name for masks in folds.values() for name in masks} - set(films))
    if lost:
        raise FXError(f"{args.source}: has no {lost[0]}.IMG, but {args.scr} has masks for it")
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=annotate, note="masks of SCR")


def find_masks(folder: Path) -> dict[str, list[list[str]]]:
    """The mask files of each class, by image; FXError if one is missing."""
    files = {part: index_files(folder / part, (".gif",)) for parts in FOLDERS.values() for part in parts}
    names = sorted({name for found in files.values() for name in found})
    for part, found in files.items():
        if lost := [name for name in names if name not in found]:
            raise FXError(f"{folder / part}: has no mask for {lost[0]}")
    return {name: [[str(files[part][name]) for part in FOLDERS[title]] for title in SPEC.seg_classes] for name in names}


def annotate(files: Sequence[Sequence[str]], shape: tuple[int, int]) -> Mapping[str, Any]:
    """The masks, upsampled by two."""
    masks = []
    for parts in files:
        merged = merge_masks([read_mask_file(Path(part)) for part in parts])
        if (2 * merged.shape[0], 2 * merged.shape[1]) != shape:
            raise FXError(f"{parts[0]}: the mask has shape {merged.shape}, which is not half of the image's {shape}")
        masks.append(encode_mask(np.repeat(np.repeat(merged, 2, axis=0), 2, axis=1)))
    return {"masks": masks}


if __name__ == "__main__":
    sys.exit(main())
