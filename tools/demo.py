#!/usr/bin/env python
"""Run a trained model on X-rays: files or folders in, overlays, JSON and tables out; or serve a web page.

tools/demo.py --weights output/fx/model_final.pth --input a.png folder "scans/*.dcm" --output out
tools/demo.py --weights output/fx/model_final.pth --web

Reads PNG, JPEG, DICOM and MHA. Folders are searched recursively. docs/demo.md describes the output.
Research use only; not for clinical decisions.

Exit codes: 0 all images were predicted; 1 an error, or no image could be read; 2 a wrong argument; 3 some inputs were
skipped; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from fx_d2.demo import check_output, find_films, predict_files
from fx_d2.predictor import FXPredictor
from fx_d2.structures import TASKS, FXError

SKIPPED, INTERRUPTED = 3, 130


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help=".pth of a run, or the folder of an inference checkpoint")
    parser.add_argument("--input", nargs="+", help='files, folders, or quoted patterns such as "scans/**/*.dcm"')
    parser.add_argument("--output", help="folder for the results; must not contain earlier ones")
    parser.add_argument("--datasets", nargs="+", help="datasets whose heads to run (default: all)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="tasks to run (default: all)")
    parser.add_argument("--score-thresh", type=float, default=0.3, help="minimum score of boxes (default 0.3)")
    parser.add_argument("--which", choices=("student", "teacher"), help="default: the student, or the only one there")
    parser.add_argument("--batch-size", type=int, default=4, help="images per forward pass (default 4)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    parser.add_argument("--no-overlays", action="store_true", help="JSON and tables only: faster for large folders")
    parser.add_argument("--web", action="store_true", help="serve a web page to drop X-rays on, until Ctrl-C")
    parser.add_argument("--host", default="127.0.0.1", help="of the web page (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="of the web page (default 7860; 0: any free port)")
    args = parser.parse_args(argv)
    if args.web == bool(args.input or args.output) or bool(args.input) != bool(args.output):
        parser.error("pass --input and --output, or --web")
    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size}: must be at least 1")
    if not 0 <= args.score_thresh <= 1:
        parser.error(f"--score-thresh {args.score_thresh:g}: must be between 0 and 1")
    return args


def run_files(args: argparse.Namespace) -> int:
    """Predict the input files; returns the exit code."""
    check_output(args.output)
    found = find_films(args.input)
    _say_unused(found.missing, found.others)
    if not found.paths:
        raise FXError("no image found in --input")
    predictor = _predictor(args)
    outcomes = predict_files(
        predictor,
        found.paths,
        args.output,
        datasets=args.datasets,
        tasks=args.tasks,
        score_thresh=args.score_thresh,
        pictures=not args.no_overlays,
    )
    skipped = len(found.missing)
    read = 0
    for outcome in tqdm(outcomes, total=len(found.paths), unit="image", disable=None):
        read += outcome.problem is None
        if outcome.problem is not None:
            skipped += 1
            tqdm.write(f"skipped  {outcome.problem}", file=sys.stderr)
    if not read:
        raise FXError("no image could be read")
    print(f"images predicted: {read}, inputs skipped: {skipped}; results in {args.output}. Research use only.")
    return SKIPPED if skipped else 0


def run_web(args: argparse.Namespace) -> int:
    """Serve the web page until interrupted; returns the exit code."""
    from fx_d2.demo.web import create_app, serve

    app = create_app(
        _predictor(args), datasets=args.datasets, tasks=args.tasks, score_thresh=args.score_thresh, host=args.host
    )
    serve(
        app,
        args.host,
        args.port,
        lambda address: print(f"{address}   (Ctrl-C to stop)   Research use only.", flush=True),
    )
    return 0


def _predictor(args: argparse.Namespace) -> FXPredictor:
    return FXPredictor.from_checkpoint(args.weights, which=args.which, device=args.device, batch_size=args.batch_size)


def _say_unused(missing: Mapping[str, str], others: Mapping[str, int]) -> None:
    """Print a line for each input without files, and one for all ignored files in folders."""
    for text, reason in missing.items():
        print(f"skipped  {text}: {reason}", file=sys.stderr)
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.items())
        print(f"ignored in folders, not images by name: {kinds}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, see above. Errors are one line on standard error."""
    args = parse_args(argv)
    try:
        return run_web(args) if args.web else run_files(args)
    except KeyboardInterrupt:
        done = f"; results so far are in {args.output}" if args.output and Path(args.output).is_dir() else ""
        print(f"interrupted{done}", file=sys.stderr)
        return INTERRUPTED
    except torch.OutOfMemoryError:
        print(f"error: {args.device or 'the GPU'} is out of memory: try a smaller --batch-size", file=sys.stderr)
    except (FXError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
