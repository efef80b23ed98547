"""Peak memory of training steps, each candidate in its own process.

"held" is the memory before the first step: weights of student and teacher. "peak" is the maximum during two steps: the
same plus gradients, the optimizer's moments, and activations kept for the backward pass. On a CPU both are resident
memory of the process beyond that after the imports, with the C library's default settings; on a GPU they are memory
allocated by torch.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.reference_style import ReferenceStyle
from benchmarks.report import ALLOCATOR, markdown_table
from benchmarks.step import REFERENCE, SAME
from benchmarks.world import AS_REFERENCE, Ours, drawn_world, make_cfg, recommended, verdict
from fx_d2.structures import FXError

HELP = "peak memory of a step, compared with the public code's way"
CHECKPOINTED = f"{REFERENCE}, backbone recomputed"
TARGET = 0.65
"""Largest allowed ratio of a localization step's peak to that of the reference-style step, both in float32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--kinds", nargs="+", default=[], help="kinds of step (default loc/lock loc/release)")


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    if not args.device.startswith("cuda") and not Path("/proc/self/status").is_file():
        raise FXError("peak memory on a CPU is read from /proc, which this system does not have")
    rows = []
    folder, root = drawn_world(images=args.batch)
    names = _options(args.device)
    with folder:
        for kind in args.kinds or (["loc/lock"] if args.quick else ["loc/lock", "loc/release"]):
            found = {name: in_child(measure, args, str(root), name, kind) for name in names}
            rows += [_row(kind, name, found) for name in found]
    columns = ["kind of step", "candidate", "held, MB", "peak, MB", f"peak / {REFERENCE}", "target"]
    return markdown_table(columns, rows)


def _options(device: str) -> dict[str, tuple[str, ...]]:
    """Candidate -> its config options."""
    checkpointed = (*AS_REFERENCE, "MODEL.TIMM.GRAD_CHECKPOINTING", "True")
    return dict([(REFERENCE, AS_REFERENCE), (CHECKPOINTED, checkpointed), (SAME, AS_REFERENCE), recommended(device)])


def in_child(function: Callable, *arguments: object) -> tuple[float, float]:
    """Result of a function in a fresh process with glibc's default allocator, which returns freed memory."""
    context, settings = multiprocessing.get_context("spawn"), {}
    for key in ALLOCATOR:
        if key in os.environ:
            settings[key] = os.environ.pop(key)
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.update(settings)


def measure(args: argparse.Namespace, root: str, name: str, kind: str) -> tuple[float, float]:
    """Megabytes (held, peak) of a candidate for a kind of step; must run in a fresh process."""
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = make_cfg(args, Path(root), _options(args.device)[name])
    meter = _meter(args.device)
    before, _ = meter()
    ours = Ours(cfg)
    if kind not in ours.phases:
        raise FXError(f"--kinds {kind}: choose from {', '.join(ours.phases)}")
    phase, samples = ours.phases[kind].phase, ours.samples(kind)
    if name not in (REFERENCE, CHECKPOINTED):
        ours.enter(kind)
        step: Callable[[], object] = ours.step
    else:
        del ours
        reference = ReferenceStyle(cfg)
        reference.enter(phase, samples)
        step = reference.step
    held, _ = meter()
    for _ in range(2):
        step()
    _, peak = meter()
    return held - before, peak - before


def _row(kind: str, name: str, found: dict[str, tuple[float, float]]) -> list[str]:
    held, peak = found[name]
    share = peak / found[REFERENCE][1]
    target = verdict(share, TARGET if name == SAME else None, at_least=False)
    return [kind, name, f"{held:.0f}", f"{peak:.0f}", f"{share:.2f}", target]


def _meter(device: str) -> Callable[[], tuple[float, float]]:
    """Function that returns megabytes (now, maximum since the last call)."""
    if device.startswith("cuda"):
        return _cuda_meter
    return _resident_meter


def _cuda_meter() -> tuple[float, float]:
    gc.collect()
    torch.cuda.synchronize()
    found = torch.cuda.memory_allocated() / 1e6, torch.cuda.max_memory_allocated() / 1e6
    torch.cuda.reset_peak_memory_stats()
    return found


def _resident_meter() -> tuple[float, float]:
    gc.collect()
    peak = _status("VmHWM")
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # freed memory must not count, even if the allocator keeps it
    now = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    return now, peak


def _status(key: str) -> float:
    """Megabytes in a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{key}:"))
