#!/usr/bin/env python
"""Convert a third-party checkpoint to one that train_net.py accepts as MODEL.WEIGHTS.

Known layouts: the authors' Foundation X (also with student and teacher in one file) and Foundation X+, Ark, POPAR, Swin
from Microsoft, timm or Detectron2, and any other timm model, as far as their weights have a counterpart in the config's
model. The numbers of matched, missing, unexpected and reshaped weights are printed by component; no match at all is an
error. The output contains "model"; "teacher" too if the source has both and --which is not given (from Ark only the
teacher is taken, as "model"); and, if all weights of the model are present, the "classes" of its heads.
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
        if content:  # the student is already there: this is its teacher, with the key names of EMATeacher
            content["teacher"] = {f"model.{key}": value for key, value in conversion.state.items()}
        else:
            content["model"] = conversion.state
        if conversion.complete:
            content["classes"] = class_lists(model)
    write_new(content, output)
    print(f"{output}: {', '.join(chosen)}")


def argument_parser() -> argparse.ArgumentParser:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help=".pth of tensors or .pkl of arrays")
    parser.add_argument("--output", required=True, help="file to write")
    parser.add_argument("--which", choices=("student", "teacher"), help="only this one (default: by layout)")
    parser.add_argument("--config-file", default=str(CONFIG), help="model config (default: the authors' architecture)")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs to override the config")
    return parser


if __name__ == "__main__":
    try:
        convert(argument_parser().parse_args())
    except FXError as error:
        sys.exit(f"error: {error}")
