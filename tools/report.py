#!/usr/bin/env python
"""The paper's tables with ours beside, comparisons, curves and pictures of errors, from what runs left on disk.

tools/report.py output/fx output/baseline_*/*/ --output output/report
tools/report.py all=output/fx half=output/fx_half --compare all half --output output/report

RUN is the OUTPUT_DIR of a training or of an evaluation, or a folder of such folders. Of a training, its folder `test`
is taken for the evaluation if it holds one. Written are report.html (one page that needs nothing beside it), report.md,
report.json and tables/*.csv: docs/results.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.reporting import ReportOptions, build_report, read_paper, read_runs, write_document
from fx_d2.structures import FXError

PAPER = Path(__file__).resolve().parents[1] / "projects" / "FoundationX" / "paper.yaml"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description="Tables, comparisons, curves and pictures of errors of some runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a training or evaluation, or NAME=PATH")
    parser.add_argument("--output", required=True, help="folder of the report")
    parser.add_argument(
        "--paper", default=str(PAPER), help="published numbers to stand beside (default: Foundation X's)"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        default=[],
        metavar=("A", "B"),
        help="B against A, each NAME or NAME:teacher, in the same draws of patients; may be repeated",
    )
    parser.add_argument(
        "--draws", type=int, default=1000, help="draws behind an interval of a difference (default 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--gallery", type=int, default=3, help="pictures of each kind, task and split (default 3)")
    parser.add_argument("--no-pictures", action="store_true", help="leave the pictures out")
    parser.add_argument("--data", default="", help="folder of prepared datasets (default: as the runs' configs say)")
    return parser.parse_args(argv)


def write_report(args: argparse.Namespace) -> Path:
    """Write the report; returns its page. Raises FXError for wrong input."""
    for name in ("draws", "gallery"):
        if getattr(args, name) < 0:
            raise FXError(f"--{name} must be 0 or more, not {getattr(args, name)}")
    if args.compare and not args.draws:
        raise FXError("--compare needs draws of patients: --draws 1 or more")
    if args.data and not Path(args.data).is_dir():
        raise FXError(f"--data {args.data}: no such folder")
    options = ReportOptions(
        paper=read_paper(args.paper),
        compare=tuple((first, second) for first, second in args.compare),
        draws=args.draws,
        seed=args.seed,
        pictures=0 if args.no_pictures else args.gallery,
        root=args.data,
    )
    return write_document(args.output, build_report(read_runs(args.runs), options))[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after one line about wrong input on standard error."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        page = write_report(args)
    except (FXError, OSError) as error:  # the latter names what cannot be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"report: {page} ({page.stat().st_size / 1e6:.2f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
