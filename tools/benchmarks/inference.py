"""Inference of one, two and three tasks on the same images: in one forward pass, and in one pass per task.

In one pass the backbone runs once, as in the predictor and in evaluation. The ratio is the total time of one pass per
task over the time of the joint pass. Masks have the size of the network input unless --original sets another.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from typing import Any

import torch
from detectron2.modeling import build_model

from benchmarks.report import markdown_table
from benchmarks.timing import ratios, spread, take_turns, wall_clock
from benchmarks.world import draw_batch, drawn_world, make_cfg, recommended, repetitions, verdict
from fx_d2.modeling import FoundationX
from fx_d2.structures import TASKS

HELP = "inference of one, two and three tasks, in one pass and in one pass per task"
TARGET = 2.0
"""Target speed-up of one pass for three tasks over three passes for one task each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--original", type=int, default=0, help="side of the originals (default 0: as the input)")
    parser.add_argument("--batches", type=int, nargs="+", default=[], help="batch sizes (default 1 8)")


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    rows = []
    folder, root = drawn_world(images=1)
    with folder:
        cfg = make_cfg(args, root, recommended(args.device)[1])
    model = build_model(cfg).eval()
    for count in args.batches or ([1] if args.quick else [1, 8]):
        batch = draw_batch(model, cfg.INPUT.SIZE, count, args.original)
        chosen = [tasks for size in (1, 2, 3) for tasks in itertools.combinations(TASKS, size)]
        times = take_turns(
            {"+".join(tasks): lambda _, tasks=tasks, batch=batch: infer(model, batch, tasks) for tasks in chosen},
            repetitions(args, 7),
            wall_clock(args.device),
        )
        rows += [_row(tasks, count, times) for tasks in chosen]
    return markdown_table(["tasks", "images", "together, s", "images/s", "apart / together", "target"], rows)


@torch.no_grad()
def infer(model: FoundationX, batch: list[dict[str, Any]], tasks: tuple[str, ...]) -> object:
    """One forward pass for some tasks."""
    return model([sample | {"tasks": list(tasks)} for sample in batch])


def _row(tasks: tuple[str, ...], count: int, times: dict[str, list[float]]) -> list[str]:
    name = "+".join(tasks)
    apart = [sum(single) for single in zip(*(times[task] for task in tasks), strict=True)]
    found = ratios({"apart": apart, name: times[name]}, "apart", name)
    middle = statistics.median(times[name])
    target = verdict(statistics.median(found), TARGET if len(tasks) == 3 else None)
    return [name, str(count), spread(times[name], 3), f"{count / middle:.1f}", spread(found), target]
