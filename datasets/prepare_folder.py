"""Convert a plain folder (images, labels.csv, COCO boxes, mask files) to the annotation format of fx_d2.

Example: python datasets/prepare_folder.py my_xrays --output datasets/prepared --boxes boxes_nodule
The folder layout is described in datasets/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.data.annotations import load_spec
from fx_d2.data.folder import FolderOptions, prepare_folder
from fx_d2.data.preparation import Prepared, add_draw_options, report
from fx_d2.structures import LABEL_POLICIES, DatasetSpec, FXError


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare one folder; see `preparation.report`."""
    args = _parser().parse_args(argv)

    def work() -> tuple[DatasetSpec, Prepared]:
        options = FolderOptions(
            name=args.name,
            tasks=_names(args.tasks),
            boxes=args.boxes,
            labels=_names(args.labels),
            masks=_names(args.masks),
            flip_pairs=None if args.flip_pairs is None else _pairs(args.flip_pairs),
            uncertain=args.uncertain,
            blank=args.blank,
            cache_size=args.cache_size,
            val_share=args.val_share,
            test_share=args.test_share,
            seed=args.seed,
        )
        target, splits = prepare_folder(args.source, args.output, options)
        return load_spec(target), (target, splits)

    return report(work, args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", help="the folder that contains dataset.json")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="root of the prepared datasets")
    parser.add_argument("--name", default="", help="name of the dataset (default: the one in dataset.json)")
    parser.add_argument("--tasks", default="", help="some of cls,loc,seg (default: all that the folder has)")
    parser.add_argument("--boxes", default="", metavar="KIND", help="kind of boxes, if the folder has several")
    parser.add_argument("--labels", default="", metavar="COL,COL", help="label columns (default: all)")
    parser.add_argument("--masks", default="", metavar="NAME,NAME", help="mask structures (default: all)")
    parser.add_argument(
        "--flip-pairs",
        metavar="A:B,A:B",
        help="class pairs swapped by a horizontal flip (default: inferred from left/right in the names; '' for none)",
    )
    parser.add_argument("--uncertain", default="ignore", choices=LABEL_POLICIES, help="policy for label -1")
    parser.add_argument("--blank", default="ignore", choices=("ignore", "zeros"), help="policy for blank labels")
    parser.add_argument(
        "--cache-size", type=int, default=0, metavar="N", help="train from copies with a shorter side of N pixels"
    )
    add_draw_options(parser)
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for item in _names(text):
        left, colon, right = item.partition(":")
        if not colon:
            raise FXError(f"--flip-pairs: {item!r} must have the form left_lung:right_lung")
        pairs.append((left.strip(), right.strip()))
    return tuple(pairs)


if __name__ == "__main__":
    sys.exit(main())
