#!/usr/bin/env python
"""Check prepared datasets: image counts, files, patients, and images shared between datasets.

tools/check_datasets.py                          check the annotations of all datasets in $DETECTRON2_DATASETS
tools/check_datasets.py jsrt node21 --read       decode every image: broken files, bit depths, blank images, mask files
tools/check_datasets.py --overlaps               also find duplicate images
tools/check_datasets.py --exclude leaks.json     also list the training images that are in the test split of another
                                                 dataset, for DATASETS.EXCLUDE
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from fx_d2.config import add_fx_config
from fx_d2.data import check_images, check_patients, dataset_root, get_dicts, register_datasets
from fx_d2.data.inspection import Inspection, inspect_split
from fx_d2.data.overlap import Overlap, find_overlaps, known_families, training_leaks, write_exclusions
from fx_d2.data.summary import count_table
from fx_d2.structures import SPLITS, FXError, spec_of

SHOWN = 5
"""Maximum number of examples printed per list."""

Splits = dict[str, list[dict[str, Any]]]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", metavar="NAME", help="datasets or splits (default: all in the root)")
    parser.add_argument(
        "--root",
        default="",
        help="root of the prepared datasets (default: $DETECTRON2_DATASETS, else datasets/prepared)",
    )
    parser.add_argument("--read", action="store_true", help="decode every image and mask file")
    parser.add_argument("--overlaps", action="store_true", help="find duplicate images; implies --read")
    parser.add_argument("--exclude", type=Path, metavar="FILE", help="write the exclusions; implies --overlaps")
    parser.add_argument(
        "--held-out",
        nargs="+",
        default=["test"],
        choices=SPLITS[1:],
        help="splits whose images must not be trained on (default: test)",
    )
    parser.add_argument(
        "--by-patient", action="store_true", help="exclude all training images of the patients concerned"
    )
    cores = min(8, os.cpu_count() or 1)
    parser.add_argument(
        "--workers", type=int, default=cores, help="worker processes; 0 = main process only (default %(default)s)"
    )
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> int:
    """Run the checks and print a report; returns the number of problems. Raises FXError for invalid arguments."""
    names = _registered(args)
    splits, faults = _load(names)
    rows = list(dict.fromkeys(spec_of(name).name for name in splits))
    for row in rows:
        faults += _check_row(row, {name: dicts for name, dicts in splits.items() if spec_of(name).name == row})
    inspections: dict[str, Inspection] = {}
    if args.read or args.overlaps or args.exclude:
        for name, dicts in splits.items():
            inspections[name] = inspect_split(dicts, workers=args.workers, name=name)
            faults += inspections[name].faults
        _print_inspections(splits, inspections)
    families = known_families(rows)
    if families:
        print("\nknown to share images:\n" + "\n".join(f"  {line}" for line in families))
    if args.overlaps or args.exclude:
        _report_overlaps(args, splits, {name: found.prints for name, found in inspections.items()})
    elif families:
        print("  --overlaps finds them, --exclude FILE writes the exclusions")
    print(f"\n{len(faults)} problems in {len(splits)} splits of {len(rows)} datasets" + (":" if faults else ""))
    print("\n".join(f"  {line}" for line in faults))
    return len(faults)


def _registered(args: argparse.Namespace) -> list[str]:
    """Register the splits to check; returns their names."""
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.DATASETS.ROOT = args.root
    root = dataset_root(cfg)
    asked = args.datasets or sorted({file.parent.name for split in SPLITS for file in root.glob(f"*/{split}.json")})
    if not asked:
        raise FXError(f"no prepared datasets in {root}: see datasets/README.md")
    names: list[str] = []
    for name in asked:
        row, _, split = name.rpartition("_")
        if split in SPLITS and (root / row).is_dir():
            names.append(name)
            continue
        found = [f"{name}_{split}" for split in SPLITS if (root / name / f"{split}.json").is_file()]
        if not found:
            raise FXError(f"{name}: no annotation file in {root / name}; prepare it first (datasets/README.md)")
        names += found
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), tuple(names)
    register_datasets(cfg)
    return names


def _load(names: list[str]) -> tuple[Splits, list[str]]:
    """The dicts of the splits with a valid annotation file, and an error line for each of the others."""
    splits: Splits = {}
    faults = []
    for name in names:
        try:
            splits[name] = get_dicts(name)
        except FXError as error:
            faults.append(str(error))
    return splits, faults


def _check_row(row: str, splits: Splits) -> list[str]:
    """Print the counts of a dataset; returns the problems with its files and patients."""
    faults = [fault for dicts in splits.values() for fault in _fault(check_images, dicts)]
    faults += _fault(check_patients, splits)
    spec = spec_of(next(iter(splits)))
    by_split = {MetadataCatalog.get(name).split: dicts for name, dicts in splits.items()}
    return faults + _fault(lambda counted: print(f"\n{count_table(spec, counted)}"), by_split)


def _fault(find: Callable[[Any], None], argument: Any) -> list[str]:
    """Run a check; returns the message of its FXError, if any, as a list."""
    try:
        find(argument)
    except FXError as error:
        return [str(error)]
    return []


def _print_inspections(splits: Splits, inspections: dict[str, Inspection]) -> None:
    """Print a table of file formats, problems and blank images."""
    table = []
    for name, found in inspections.items():
        kinds = "; ".join(f"{kind}: {count}" for kind, count in found.kinds.most_common())
        table.append([name, len(splits[name]), len(found.faults), len(found.blank), kinds])
    print("\n" + tabulate(table, headers=["split", "images", "problems", "blank", "files"], tablefmt="simple"))
    for name, found in inspections.items():
        for path in found.blank[:SHOWN]:
            print(f"  {name}: {path} is blank")


def _report_overlaps(args: argparse.Namespace, splits: Splits, prints: dict[str, np.ndarray]) -> None:
    """Print duplicate images, and write the exclusions."""
    overlaps = find_overlaps(splits, prints)
    counts = Counter((overlap.split, overlap.other) for overlap in overlaps)
    table = [[a, b, count] for (a, b), count in counts.most_common()]
    print("\nduplicate images: " + ("" if table else "none"))
    if table:
        print(tabulate(table, headers=["split", "split", "pairs"], tablefmt="simple"))
    leaks = training_leaks(overlaps, args.held_out)
    held_out = " or ".join(args.held_out)
    films = {(leak.split, leak.index) for leak in leaks}
    print(f"\ntraining images that are also in a {held_out} split: {len(films)}")
    for leak in leaks[:SHOWN]:
        print(f"  {_file(leak, splits)}")
    if args.exclude:
        written = write_exclusions(args.exclude, leaks, splits, by_patient=args.by_patient)
        lines = ", ".join(f"{name} {count}" for name, count in written.items()) or "nothing to exclude"
        print(f"written to {args.exclude}: {lines}; train with DATASETS.EXCLUDE {args.exclude}")


def _file(leak: Overlap, splits: Splits) -> str:
    mine, other = splits[leak.split][leak.index], splits[leak.other][leak.other_index]
    return f"{mine['file_name']} is {other['file_name']} of {leak.other} (similarity {leak.similarity:.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 if problems were found; 2 after a one-line error about invalid arguments on stderr."""
    args = parse_args(argv)
    try:
        return 1 if check(args) else 0
    except FXError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or args.exclude}: {error.strerror or error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
