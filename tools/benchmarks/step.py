"""Seconds of a training step of every kind, and of a cycle, compared with a step of the public code.

Three candidates with the model of all eleven datasets: `reference-style` (see benchmarks/reference_style.py), and
fx_d2's trainer with the same precision and queries (float32, 900) and with the recommended ones (bfloat16 autocast,
300; on a CPU without bfloat16 instructions float32, 300). All three live in one process and take turns on the same
images. Steps differ little between datasets: the measured ones are of the dataset with all tasks and the most masks.

A cycle is the weighted sum over its kinds of steps, in two variants: weighted by the published numbers of training
images of the eleven datasets (most are for classification only), plus one teacher update per pass, and with the same
number of images in every dataset.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping

from benchmarks.cycle import cycle_images, equal_slots, passes
from benchmarks.reference_style import ReferenceStyle
from benchmarks.report import markdown_table
from benchmarks.timing import ratios, spread, take_turns, wall_clock
from benchmarks.world import AS_REFERENCE, Ours, drawn_world, make_cfg, recommended, repetitions, verdict
from fx_d2.structures import FXError, specs_of

HELP = "a training step of every kind and a cycle, compared with the public code's way"

REFERENCE, SAME = "reference-style", "fx_d2, float32, 900 queries"
TARGETS = ({"loc/release": 2.2, "loc/lock": 3.0, "cycle": 1.8}, {"loc/release": 6.0, "loc/lock": 6.0, "cycle": 4.0})
"""Target speed-ups over the reference-style step, with the same precision and queries, and as recommended; on two CPU
cores, Swin-B, 224 pixels, batch size 2."""

Times = dict[str, dict[str, list[float]]]
"""Kind of step -> candidate -> seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--kinds", nargs="+", default=[], help="kinds of step, such as loc/lock (default all)")
    parser.add_argument(
        "--checkpointing", action="store_true",
        help="the reference-style step recomputes the backbone's activations, as the public code's config does",
    )  # fmt: skip


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    folder, root = drawn_world(images=args.batch)
    with folder:
        wanted = ((SAME, AS_REFERENCE), recommended(args.device))
        ours = {name: Ours(make_cfg(args, root, opts)) for name, opts in wanted}
        first = ours[SAME]
        opts = [*AS_REFERENCE, "MODEL.TIMM.GRAD_CHECKPOINTING", str(args.checkpointing)]
        reference = ReferenceStyle(make_cfg(args, root, opts), first.trainer.model.state_dict())
        clock, times = wall_clock(args.device), Times()
        count = repetitions(args, 7)
        if strange := [kind for kind in args.kinds if kind not in first.phases]:
            raise FXError(f"--kinds {strange[0]}: choose from {', '.join(first.phases)}")
        for kind in args.kinds or first.phases:
            reference.enter(first.phases[kind].phase, first.samples(kind))
            for candidate in ours.values():
                candidate.enter(kind)
            times[kind] = take_turns({REFERENCE: _call(reference.step)} | _steps(ours), count, clock)
            middle = (f"{name} {statistics.median(seconds):.2f} s" for name, seconds in times[kind].items())
            print(f"{kind}: {'; '.join(middle)}", file=sys.stderr, flush=True)
        ends = {REFERENCE: _call(reference.end_pass)}
        ends |= {name: _call(candidate.end_pass) for name, candidate in ours.items()}
        updates = take_turns(ends, count, clock)
        cfg = first.trainer.cfg
        specs = specs_of(cfg.DATASETS.TRAIN)
        images = cycle_images(specs, cfg.SCHEDULE, args.batch)
        steps = {kind: number / args.batch for kind, number in images.items()}
        even = equal_slots(specs, cfg.SCHEDULE)
        ends_of_passes = sum(1 for _ in passes(specs, cfg.SCHEDULE))
    mixes = {"cycle, published images": steps, "cycle, equal datasets": even}
    cycles = {name: _cycle(times, mix, updates, ends_of_passes if mix is steps else 0) for name, mix in mixes.items()}
    return report(times, {} if args.kinds else cycles, args.batch)


def _call(function: Callable[[], object]) -> Callable[[int], object]:
    return lambda repetition: function()


def _steps(ours: Mapping[str, Ours]) -> dict[str, Callable[[int], object]]:
    return {name: _call(candidate.step) for name, candidate in ours.items()}


def _cycle(times: Times, weights: Mapping[str, float], updates: dict[str, list[float]], passes: int) -> dict:
    """Seconds of a cycle in each repetition, by candidate."""
    return {
        name: [
            sum(weights[kind] * times[kind][name][i] for kind in times) + passes * updates[name][i]
            for i in range(len(updates[name]))
        ]
        for name in updates
    }


def report(times: Times, cycles: Times, images: int) -> str:
    """Two tables: seconds, and ratios with targets."""
    names = list(next(iter(times.values())))
    seconds = [[kind, *(spread(times[kind][name], 3) for name in names)] for kind in times]
    updates = markdown_table(["kind of step, s", *names], seconds)
    lines = []
    for kind, found in (times | cycles).items():
        row = [kind]
        for name, targets in zip(names[1:], TARGETS, strict=True):
            values = ratios(found, REFERENCE, name)
            row += [spread(values), verdict(statistics.median(values), targets.get(kind.partition(",")[0]))]
        lines.append(row)
    columns = ["times as fast", *(column for name in names[1:] for column in (name, "target"))]
    return f"{images} images per step; median (minimum .. maximum)\n\n{updates}\n\n{markdown_table(columns, lines)}"
