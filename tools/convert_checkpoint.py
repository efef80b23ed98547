#!/usr/bin/env python
"""Convert a checkpoint of another program into one that train_net.py takes as MODEL.WEIGHTS.

Known layouts: the authors' Foundation X (also student and teacher in one file) and Foundation X+, Ark, POPAR, Swin of
Microsoft, timm or Detectron2, and any other timm model, as far as the config's model has a place for their weights.
What matched, is missing, unexpected or of another shape is printed by component; nothing matched is an error.
The output holds "model", "teacher" where the source has both and --which names neither, and, for layouts with heads,
the "classes" these stand for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fx_d2.data import register_rows
from fx_d2.engine import build_cfg
from fx_d2.engine.checkpoint import class_lists
from fx_d2.engine.checkpoint_files import write_new
from fx_d2.engine.convert import build_shapes, convert_source
from fx_d2.engine.weights import read_source
from fx_d2.structures import FXError

CONFIG = Path(__file__).resolve().parents[1] / "projects" / "FoundationX" / "configs" / "reference.yaml"


def convert(args: argparse.Namespace) -> None:
    """Read, convert, report, write."""
    output = Path(args.output)
    if output.resolve() == Path(args.source).resolve():
        raise FXError(f"--output {output} is the source itself")
    cfg = build_cfg(args.config_file, list(args.opts))
    register_rows(cfg)
    model = build_shapes(cfg)
    source = read_source(args.source)
    chosen = (args.which,) if args.which else source.default
    content: dict[str, Any] = {}
    for which in chosen:
        conversion = convert_source(source, which, model)
        print(conversion.describe() + "\n")
        if content:  # the student is there: this is its teacher, under the names EMATeacher gives
            content["teacher"] = {f"model.{key}": value for key, value in conversion.state.items()}
        else:
            content["model"] = conversion.state
        if conversion.complete:
            content["classes"] = class_lists(model)
    write_new(content, output)
    print(f"{output}: {', '.join(chosen)}")


def argument_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help=".pth of tensors or .pkl of arrays")
    parser.add_argument("--output", required=True, help="the file to write")
    parser.add_argument("--which", choices=("student", "teacher"), help="only this one; default: what the file holds")
    parser.add_argument("--config-file", default=str(CONFIG), help="the model; default: the authors' architecture")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs that change the config")
    return parser


if __name__ == "__main__":
    try:
        convert(argument_parser().parse_args())
    except FXError as error:
        sys.exit(f"error: {error}")
