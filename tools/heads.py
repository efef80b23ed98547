#!/usr/bin/env python
"""List the heads of a checkpoint, or write a checkpoint with other heads; all other weights are unchanged.

tools/heads.py model_final.pth
tools/heads.py model_final.pth --drop chexpert tbx11k/loc --add path/to/dataset.yaml --output new.pth
tools/heads.py model_final.pth --keep --add path/to/dataset.yaml --output new.pth

A dataset added under an existing name replaces the old one, but heads with the same classes are kept. New heads are
randomly initialised: train them in a run with MODEL.WEIGHTS set to the new file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fx_d2.data import load_spec
from fx_d2.data.table import BY_NAME
from fx_d2.engine.bundle import Bundle, read_bundle, with_heads, write_training_checkpoint
from fx_d2.modeling.heads import head_name
from fx_d2.structures import TASKS, DatasetSpec, FXError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help=".pth of a run, or an inference checkpoint's folder")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--drop", nargs="+", default=[], metavar="NAME", help="DATASET or DATASET/TASK, e.g. jsrt/loc")
    choice.add_argument("--keep", nargs="*", metavar="NAME", help="keep only these, same format; no NAME: none")
    parser.add_argument("--add", nargs="+", default=[], metavar="ROW", help="a dataset.yaml or a row of the table")
    parser.add_argument("--seed", type=int, default=0, help="for the new weights (default 0)")
    parser.add_argument("--output", help=".pth to write; required if anything changes")
    return parser.parse_args(argv)


def chosen_rows(specs: Sequence[DatasetSpec], args: argparse.Namespace) -> list[DatasetSpec]:
    """The dataset rows of the new checkpoint; FXError for an unknown head."""
    names = args.drop if args.keep is None else args.keep
    marked: dict[str, set[str]] = {}
    there = {spec.name: spec for spec in specs}
    for name in names:
        dataset, _, task = name.partition("/")
        tasks = there[dataset].tasks if dataset in there else ()
        if not tasks or (task and task not in tasks):
            heads = [f"{spec.name}/{t}" for spec in specs for t in spec.tasks]
            raise FXError(f"{name}: no such head in {args.checkpoint}; it has {', '.join(heads)}")
        marked.setdefault(dataset, set()).update([task] if task else tasks)
    rows = {}
    for spec in specs:
        mine = marked.get(spec.name, set())
        left = mine if args.keep is not None else set(spec.tasks) - mine
        if left:
            rows[spec.name] = spec.limited_to(left)
    for new in map(_added, args.add):
        rows[new.name] = new
    return list(rows.values())


def _added(row: str) -> DatasetSpec:
    if Path(row).is_file():
        return load_spec(Path(row))
    if row not in BY_NAME:
        raise FXError(f"--add {row}: neither a file nor a row of the dataset table ({', '.join(BY_NAME)})")
    return BY_NAME[row]


def listing(bundle: Bundle) -> str:
    """One line per head: name in the checkpoint, parameters, trained or untrained, classes."""
    state = bundle.states[bundle.choose()]
    lines = [f"{bundle.path}: {' and '.join(bundle.states)}"]
    for task in TASKS:
        for spec in bundle.specs:
            if task not in spec.tasks:
                continue
            name = head_name(spec.name, task)
            size = sum(value.numel() for key, value in state.items() if key.startswith(f"{name}."))
            learned = "untrained" if name in bundle.untrained else "trained"
            lines.append(f"{name:32s} {size:>10,d}  {learned:9s}  {', '.join(spec.classes(task))}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> str:
    """Run the command and return the text to print."""
    bundle = read_bundle(args.checkpoint)
    if not (args.drop or args.add or args.keep is not None):
        if args.output:
            raise FXError("--output: nothing to change; give --drop, --keep or --add")
        return listing(bundle)
    if not args.output:
        raise FXError("--output is missing: give the .pth to write")
    if Path(args.output).exists():
        raise FXError(f"--output {args.output} already exists: choose another name, or remove it")
    torch.manual_seed(args.seed)
    changed, change = with_heads(bundle, chosen_rows(bundle.specs, args))
    write_training_checkpoint(changed, args.output)
    return f"{change}\nwritten  {args.output}"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 after a one-line error on standard error."""
    try:
        print(run(parse_args(argv)))
    except FXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
