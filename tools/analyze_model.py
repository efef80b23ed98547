#!/usr/bin/env python
"""Print, as a Markdown table, the parameters and the FLOPs of each component for several trunks and image sizes.

tools/analyze_model.py
tools/analyze_model.py --config-file X --trunks convnext_tiny --sizes 224 --opts MODEL.LOC.NUM_QUERIES 300

FLOPs are those of one forward pass for one image in 10^9; a multiplication and an addition are two. Counted are matrix
products, convolutions, attention, and the samples of deformable attention; what else ran is named under the table.
No weights are made: a laptop can ask for Swin-L at 1024 pixels.
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
TRUNKS = [f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(CONFIG), help="default: the paper's architecture")
    parser.add_argument("--trunks", nargs="+", default=TRUNKS, help="timm models (default: Swin-T, -S, -B, -L)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 384, 512], help="default: 224 384 512")
    parser.add_argument("--dataset", default="chestx_det", help="row whose heads are counted (default: chestx_det)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config keys as KEY VALUE pairs, last")
    return parser.parse_args(argv)


def table(cfg: CfgNode, spec: DatasetSpec, trunks: Sequence[str], sizes: Sequence[int]) -> str:
    """The Markdown table: a row for each trunk and component, and their sum; under it what was not counted."""
    uncounted: set[str] = set()
    lines = [
        "| timm model | component | parameters | " + " | ".join(f"GFLOP, {size}" for size in sizes) + " |",
        "|--|--|--:|" + "--:|" * len(sizes),
    ]
    for trunk in trunks:
        cfg.MODEL.TIMM.NAME = trunk
        per_size = [component_costs(cfg, spec, (size, size)) for size in sizes]
        uncounted |= {name.removeprefix("aten.") for costs in per_size for cost in costs for name in cost.uncounted}
        rows = [(costs[0].component, costs[0].parameters, [c.flops for c in costs])
                for costs in zip(*per_size, strict=True)]  # fmt: skip
        sums = [sum(column) for column in zip(*(flops for _, _, flops in rows), strict=True)]
        rows.append(("sum", sum(parameters for _, parameters, _ in rows), sums))
        for component, parameters, flops in rows:
            numbers = " | ".join(f"{value / 1e9:.3f}" for value in flops)
            lines.append(f"| {trunk} | {component} | {parameters:,} | {numbers} |")
    names = ", ".join(f"`{name}`" for name in sorted(uncounted))
    return "\n".join([*lines, "", f"Not counted: {names}."])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after one line about wrong input on standard error."""
    args = parse_args(argv)
    try:
        if args.dataset not in BY_NAME:
            raise FXError(f"--dataset {args.dataset}: not a row of the table ({', '.join(BY_NAME)})")
        cfg = build_cfg(args.config_file, args.opts)
        print(table(cfg, BY_NAME[args.dataset], args.trunks, args.sizes))
    except FXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
