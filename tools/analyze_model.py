#!/usr/bin/env python
"""Print a Markdown table of the parameters and FLOPs of each component for several backbones and image sizes.

tools/analyze_model.py
tools/analyze_model.py --config-file X --backbones convnext_tiny --sizes 224 --opts MODEL.LOC.NUM_QUERIES 300

GFLOPs of one forward pass for one image; a multiply-add counts as two. Counted are matrix products, convolutions,
attention, and the sampling of deformable attention; the table is followed by a list of the operators not counted.
No weights are allocated, so a laptop is enough for Swin-L at 1024 pixels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from fx_d2.data.table import BY_NAME
from fx_d2.engine import build_cfg
from fx_d2.modeling.analysis import component_costs
from fx_d2.structures import DatasetSpec, FXError

CONFIG = Path(__file__).resolve().parents[1] / "projects" / "FoundationX" / "configs" / "base.yaml"
BACKBONES = [f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(CONFIG), help="default: the paper's architecture")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="timm models (default: Swin-T, -S, -B, -L)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 384, 512], help="default: 224 384 512")
    parser.add_argument("--dataset", default="chestx_det", help="dataset row with the heads (default: chestx_det)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config keys as KEY VALUE pairs, last")
    return parser.parse_args(argv)


def table(cfg: CfgNode, spec: DatasetSpec, backbones: Sequence[str], sizes: Sequence[int]) -> str:
    """The Markdown table, with a row per backbone and component and their sum, and the operators not counted."""
    uncounted: set[str] = set()
    lines = [
        "| timm model | component | parameters | " + " | ".join(f"GFLOP, {size}" for size in sizes) + " |",
        "|--|--|--:|" + "--:|" * len(sizes),
    ]
    for backbone in backbones:
        cfg.MODEL.TIMM.NAME = backbone
        per_size = [component_costs(cfg, spec, (size, size)) for size in sizes]
        uncounted |= {name.removeprefix("aten.") for costs in per_size for cost in costs for name in cost.uncounted}
        costs_of = zip(*per_size, strict=True)
        rows = [(costs[0].component, costs[0].parameters, [cost.flops for cost in costs]) for costs in costs_of]
        sums = [sum(column) for column in zip(*(flops for _, _, flops in rows), strict=True)]
        rows.append(("sum", sum(parameters for _, parameters, _ in rows), sums))
        for component, parameters, flops in rows:
            numbers = " | ".join(f"{value / 1e9:.3f}" for value in flops)
            lines.append(f"| {backbone} | {component} | {parameters:,} | {numbers} |")
    names = ", ".join(f"`{name}`" for name in sorted(uncounted))
    return "\n".join([*lines, "", f"Not counted: {names}."])


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 after a one-line error on standard error."""
    args = parse_args(argv)
    try:
        if args.dataset not in BY_NAME:
            raise FXError(f"--dataset {args.dataset}: not a row of the dataset table ({', '.join(BY_NAME)})")
        cfg = build_cfg(args.config_file, args.opts)
        print(table(cfg, BY_NAME[args.dataset], args.backbones, args.sizes))
    except FXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
