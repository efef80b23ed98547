"""A trace of a training step, for chrome://tracing or perfetto.dev, and its operators sorted by time.

The trace is written next to the report (without --output: to output/benchmark). Times are of one step after a warm-up.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.reference_style import ReferenceStyle
from benchmarks.report import markdown_table
from benchmarks.step import REFERENCE, SAME
from benchmarks.world import AS_REFERENCE, Ours, beside, drawn_world, make_cfg, recommended
from fx_d2.structures import FXError

HELP = "profiler trace and operators of a training step"
ARMS = ("fx_d2", "fx_d2-fp32", "reference")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--kind", default="loc/release", help="kind of step (default loc/release)")
    parser.add_argument("--arm", choices=ARMS, default="fx_d2", help="candidate (default fx_d2, as recommended)")
    parser.add_argument("--top", type=int, default=20, help="number of operators listed (default 20)")


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    folder, root = drawn_world(images=args.batch)
    with folder:
        name, opts = recommended(args.device) if args.arm == "fx_d2" else (SAME, AS_REFERENCE)
        cfg = make_cfg(args, root, opts)
        ours = Ours(cfg)
        if args.kind not in ours.phases:
            raise FXError(f"--kind {args.kind}: choose from {', '.join(ours.phases)}")
        ours.enter(args.kind)
        step = ours.step
        if args.arm == "reference":
            reference = ReferenceStyle(cfg)
            reference.enter(ours.phases[args.kind].phase, ours.samples(args.kind))
            name, step = REFERENCE, reference.step
        step()
        gpu = args.device.startswith("cuda")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        with profile(activities=activities) as found:
            step()
    trace = beside(args, f"trace_{args.arm}_{args.kind.replace('/', '_')}.json")
    found.export_chrome_trace(str(trace))
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = sorted(operators(found.key_averages()), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    rows = [
        [f"`{e.key}`", str(e.count), f"{getattr(e, key) / 1e3:.2f}", f"{100 * getattr(e, key) / total:.1f} %"]
        for e in events[: args.top]
    ]
    rows.append(["all", str(sum(event.count for event in events)), f"{total / 1e3:.2f}", "100 %"])
    head = f"{args.kind}, {name}; trace: {trace.name}"
    return f"{head}\n\n{markdown_table(['operator', 'calls', 'self time, ms', 'share'], rows)}"


def operators(averages: Iterable[Any]) -> list[Any]:
    """Without GPU kernels, which torch lists as well: their time is included in the operators that launched them."""
    return [event for event in averages if event.device_type == DeviceType.CPU]
