"""A locked step compared with a released one, for localization and segmentation: what freezing saves.

fx_d2 only, at every size of --sizes, in float32 with 900 queries and with the recommended settings. Ratios are the time
of a locked step over that of a released one: smaller is better.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.report import markdown_table
from benchmarks.step import SAME
from benchmarks.timing import ratios, spread, take_turns, wall_clock
from benchmarks.world import AS_REFERENCE, Ours, drawn_world, make_cfg, recommended, repetitions, verdict

HELP = "a locked step compared with a released one, at two image sizes"
TARGETS = {("loc", 224): 0.75, ("loc", 512): 0.55, ("seg", 224): 0.5, ("seg", 512): 0.5}
"""Largest allowed ratio of a locked to a released step, by task and image size."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="sides of the images (default 224 512)")


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    rows = []
    folder, root = drawn_world(images=args.batch)
    candidates = ((SAME, AS_REFERENCE), recommended(args.device))
    with folder:
        for size in args.sizes or ([64] if args.quick else [224, 512]):
            for name, opts in candidates:
                rows += _rows(Ours(make_cfg(args, root, opts, size)), size, name, repetitions(args, 7), args.device)
    columns = ["task", "side", "candidate", "released, s", "locked, s", "locked / released", "target"]
    return markdown_table(columns, rows)


def _rows(ours: Ours, size: int, name: str, count: int, device: str) -> list[list[str]]:
    rows = []
    for task in [kind.partition("/")[0] for kind in ours.phases if kind.endswith("/lock")]:
        kinds = [f"{task}/{mode}" for mode in ("release", "lock")]
        # Both kinds share one model, so switching between them is not timed.
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(count):
            for kind in kinds:
                ours.enter(kind)
                times[kind] += take_turns({kind: lambda _: ours.step()}, 1, wall_clock(device))[kind]
        shares = ratios(times, kinds[1], kinds[0])
        target = verdict(statistics.median(shares), TARGETS.get((task, size)), at_least=False)
        rows.append([task, str(size), name, *(spread(times[kind], 3) for kind in kinds), spread(shares), target])
    return rows
