#!/usr/bin/env python
"""Report of one or more runs: our results next to the paper's, comparisons, curves and galleries of errors.

tools/report.py output/fx output/baseline_*/*/ --output output/report
tools/report.py all=output/fx half=output/fx_half --compare all half --output output/report

RUN is the OUTPUT_DIR of a training run or of an evaluation, or a folder of such folders. The evaluation of a training
run is read from its subfolder `test` if there is one. The output is report.html (a single self-contained page),
report.md, report.json and tables/*.csv: docs/results.md.
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
    parser = argparse.ArgumentParser(description="Tables, comparisons, curves and galleries of errors of some runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a training or evaluation, or NAME=PATH")
    parser.add_argument("--output", required=True, help="output folder")
    parser.add_argument(
        "--paper", default=str(PAPER), help="YAML file of published results (default: those of Foundation X)"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        default=[],
        metavar=("A", "B"),
        help="compare B with A, each NAME or NAME:teacher, on the same bootstrap resamples; repeatable",
    )
    parser.add_argument(
        "--draws", type=int, default=1000, help="bootstrap resamples behind the interval of a difference (default 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamples (default 0)")
    parser.add_argument("--gallery", type=int, default=3, help="gallery images per kind, task and split (default 3)")
    parser.add_argument("--no-pictures", action="store_true", help="leave out the galleries")
    parser.add_argument("--data", default="", help="folder of prepared datasets (default: from the runs' configs)")
    return parser.parse_args(argv)


def write_report(args: argparse.Namespace) -> Path:
    """Write the report; returns the path of its HTML page. Raises FXError for invalid input."""
    for name in ("draws", "gallery"):
        if getattr(args, name) < 0:
            raise FXError(f"--{name} must be 0 or more, not {getattr(args, name)}")
    if args.compare and not args.draws:
        raise FXError("--compare needs bootstrap resamples: set --draws to 1 or more")
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
    """Exit code: 0, or 1 after a one-line error on stderr for invalid input."""
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
