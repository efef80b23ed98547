#!/usr/bin/env python
"""Export a checkpoint as an inference checkpoint, a torch.export program, or ONNX.

tools/export.py model_final.pth --output out                      out/model.safetensors, out/model.json
tools/export.py model_final.pth --output out --format onnx        out/model.onnx
tools/export.py model_final.pth --output out --format torch       out/model.pt2

The inference checkpoint is for FXPredictor. The other two are functions of grey images float32 (B, 1, H, W) in
[0, 255], already resized to INPUT.SIZE, with any B; their outputs are named "<dataset>/cls", "<dataset>/seg",
"<dataset>/loc_scores" and "<dataset>/loc_boxes", see fx_d2/engine/export.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.engine.bundle import Bundle, read_bundle, with_heads, write_inference
from fx_d2.engine.export import TensorModel, export_program, write_onnx, write_torch
from fx_d2.structures import TASKS, FXError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help=".pth of a run, or an inference checkpoint's folder")
    parser.add_argument("--output", required=True, help="output folder")
    parser.add_argument("--format", choices=("inference", "torch", "onnx"), default="inference")
    parser.add_argument("--which", choices=("student", "teacher"), help="default: student, else teacher")
    parser.add_argument("--datasets", nargs="+", help="only these datasets (default: all)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="only these tasks (default: all)")
    return parser.parse_args(argv)


def chosen(bundle: Bundle, args: argparse.Namespace) -> Bundle:
    """The checkpoint with only the requested trained heads; FXError if a requested dataset has none."""
    names = [spec.name for spec in bundle.specs]
    if args.datasets and not set(args.datasets) <= set(names):
        raise FXError(f"--datasets {' '.join(args.datasets)}: {args.checkpoint} has {', '.join(names)}")
    rows = []
    for spec in bundle.specs:
        tasks = [task for task in bundle.trained_tasks(spec) if task in args.tasks]
        if tasks and spec.name in (args.datasets or names):
            rows.append(spec.limited_to(tasks))
    without = sorted(set(args.datasets or ()) - {spec.name for spec in rows})
    if without or not rows:
        whose = f" of {', '.join(without)}" if without else ""
        raise FXError(f"{args.checkpoint}: none of the requested heads{whose} exists and is trained")
    return with_heads(bundle, rows)[0]


def run(args: argparse.Namespace) -> list[Path]:
    """Write the requested files and return their paths."""
    bundle = chosen(read_bundle(args.checkpoint), args)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    if args.format == "inference":
        write_inference(bundle, folder, args.which)
        return [folder / "model.safetensors", folder / "model.json"]
    model = TensorModel(bundle.build(args.which), {spec.name: spec.tasks for spec in bundle.specs})
    program = export_program(model, bundle.cfg.INPUT.SIZE)
    path = folder / ("model.pt2" if args.format == "torch" else "model.onnx")
    (write_torch if args.format == "torch" else write_onnx)(program, model, path)
    return [path]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 after a one-line error on standard error."""
    try:
        written = run(parse_args(argv))
    except (FXError, OSError) as error:  # an OSError names the file
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"written  {path}" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
