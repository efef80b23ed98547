"""A training step with MODEL.COMPILE compared with the same step without, and the compile time.

fx_d2 only, with the recommended settings. "first step" is the extra time of the compiled candidate's first step of a
kind, which includes compilation; what an earlier kind has compiled is reused. torch caches compiled code on disk, which
makes the first step faster the next time: --fresh uses an empty cache.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics

from torch._inductor.utils import fresh_cache

from benchmarks.report import markdown_table
from benchmarks.timing import ratios, spread, take_turns, wall_clock
from benchmarks.world import Ours, drawn_world, make_cfg, recommended, repetitions

HELP = "a compiled training step compared with eager mode"
EAGER, COMPILED = "eager", "compiled"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default inductor)")
    parser.add_argument("--kinds", nargs="+", default=[], help="kinds of step (default all)")
    parser.add_argument("--fresh", action="store_true", help="ignore torch's on-disk cache of compiled code")


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    folder, root = drawn_world(images=args.batch)
    name, opts = recommended(args.device)
    clock, rows = wall_clock(args.device), []
    with folder, fresh_cache() if args.fresh else contextlib.nullcontext():
        found = {
            EAGER: Ours(make_cfg(args, root, opts)),
            COMPILED: Ours(make_cfg(args, root, [*opts, "MODEL.COMPILE", args.backend])),
        }
        for kind in args.kinds or found[EAGER].phases:
            for candidate in found.values():
                candidate.enter(kind)
            start = clock()
            found[COMPILED].step()
            first = clock() - start
            steps = {arm: lambda _, candidate=candidate: candidate.step() for arm, candidate in found.items()}
            times = take_turns(steps, repetitions(args, 5), clock)
            own = statistics.median(times[COMPILED])
            cells = [spread(times[arm], 3) for arm in times]
            rows.append([kind, f"{first - own:.1f}", *cells, spread(ratios(times, EAGER, COMPILED))])
    columns = ["kind of step", "first step, s more", "eager, s", f"{args.backend}, s", "times as fast"]
    return f"{name}, {args.batch} images per step\n\n{markdown_table(columns, rows)}"
