"""Time and size of a checkpoint compared with the public code's, and what lossless compression would save.

The public code writes student, teacher and optimizer after each (dataset, task) slot of a cycle; so does the row
"reference-style", with our model. Our files are not smaller: resuming exactly needs all four parts, bit by bit.
The last table shows the fraction left after compression: the bytes of float32 values arranged in planes (all first
bytes, all second bytes, ...), then zlib or lzma; the teacher also as its bitwise difference (XOR) from the student.
"entropy" is the bound for coders that encode the bytes of a plane independently.

The parts come from --checkpoint, a file of a finished training run; by default from a model trained for a few steps of
every pass, whose weights are as random as trained ones.
"""

from __future__ import annotations

import argparse
import lzma
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.report import markdown_table
from benchmarks.timing import spread
from benchmarks.world import Ours, drawn_world, make_cfg, recommended, repetitions, verdict
from fx_d2.engine import FXTrainer
from fx_d2.engine.checkpoint import read_checkpoint

HELP = "time and size of a checkpoint, and what compression would save"
TARGET = 0.4
"""Largest allowed fraction of the reference's bytes."""

_METHODS = ("zlib", "zlib, planes", "lzma, planes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--checkpoint", default="", help="checkpoint of a training run, for the compression table")
    parser.add_argument("--steps", type=int, default=2, help="steps per pass without --checkpoint (default 2)")
    parser.add_argument("--sample", type=int, default=64, help="megabytes of each part to compress (default 64)")


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    folder, root = drawn_world(images=args.batch)
    with folder:
        trainer = _train(Ours(make_cfg(args, root, recommended(args.device)[1])), 1 if args.quick else args.steps)
        written, loaded = [], []
        for _ in range(repetitions(args, 3)):
            start = time.perf_counter()
            path = trainer.saver.save(trainer.schedule.cycle_length)
            written.append(time.perf_counter() - start)
            start = time.perf_counter()
            trainer.checkpointer.load(str(path))
            loaded.append(time.perf_counter() - start)
        size, slots = path.stat().st_size, len({(p.dataset, p.task) for p in trainer.schedule.phases})
        files = 1 / trainer.cfg.SOLVER.CHECKPOINT_CYCLES
        parts = parts_of(read_checkpoint(args.checkpoint or str(path)))
    tensors = sum(part.nbytes for part in parts.values())
    rows = [
        ["reference-style", f"{tensors / 1e6:.1f}", str(slots), f"{slots * tensors / 1e9:.2f}", "", ""],
        ["fx_d2", f"{size / 1e6:.1f}", f"{files:g}", f"{files * size / 1e9:.2f}", spread(written), spread(loaded)],
    ]
    columns = ["checkpoint", "MB a file", "files a cycle", "GB a cycle", "written in, s", "loaded in, s"]
    share = files * size / (slots * tensors)
    return "\n\n".join(
        [
            f"Bytes a cycle: {share:.3f} of the reference's ({verdict(share, TARGET, at_least=False)}).",
            markdown_table(columns, rows),
            _compression(parts, (1 if args.quick else args.sample) * 10**6),
        ]
    )


def _train(ours: Ours, steps: int) -> FXTrainer:
    """Run some steps of every pass of a cycle: every parameter has moments then, and the teacher was updated."""
    trainer = ours.trainer
    for iteration in range(trainer.schedule.cycle_length):
        ours.enter_iteration(iteration)
        for _ in range(steps):
            ours.step()
        ours.end_pass()
    return trainer


def parts_of(content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The float32 values of a checkpoint by part; teacher and student in the same order."""
    student = {key: value for key, value in content["model"].items() if value.dtype == torch.float32}
    teacher = content.get("teacher", {})
    states = content["optimizer"]["state"].values()
    tensors = {
        "student": list(student.values()),
        "teacher": [teacher[f"model.{key}"] for key in student] if teacher else [],
        "first moments": [state["exp_avg"] for state in states],
        "second moments": [state["exp_avg_sq"] for state in states],
    }
    return {name: torch.cat([x.flatten() for x in found]).numpy() for name, found in tensors.items() if found}


def _compression(parts: Mapping[str, np.ndarray], most: int) -> str:
    """The compression table and its conclusion."""
    rows, left = [], 0.0
    for name, numbers in parts.items():
        sample = _sample(numbers, most // 4).view(np.uint32)
        found = _ratios(sample)
        if name == "teacher":
            found["difference"] = _ratios(sample ^ _sample(parts["student"], most // 4).view(np.uint32))["zlib, planes"]
        best = min(value for key, value in found.items() if key != "entropy")
        left += best * numbers.nbytes
        cells = [f"{found[key]:.3f}" if key in found else "" for key in (*_METHODS, "entropy", "difference")]
        rows.append([name, f"{numbers.nbytes / 1e6:.1f}", *cells])
    share = left / sum(numbers.nbytes for numbers in parts.values())
    word = "within reach" if share <= TARGET else "out of reach without losing bits"
    columns = ["part", "MB", *_METHODS, "entropy", "difference, planes"]
    said = f"The best methods leave {share:.2f} of a file: {TARGET:g} per file is {word}."
    return f"{said}\n\n{markdown_table(columns, rows)}"


def _ratios(numbers: np.ndarray) -> dict[str, float]:
    """Compressed bytes relative to those of the uint32 values."""
    plain = numbers.tobytes()
    planes = np.frombuffer(plain, np.uint8).reshape(-1, 4).T.copy()
    bits = sum(_entropy(plane) for plane in planes)
    return {
        "zlib": len(zlib.compress(plain, 1)) / len(plain),
        "zlib, planes": len(zlib.compress(planes.tobytes(), 6)) / len(plain),
        "lzma, planes": sum(len(lzma.compress(plane.tobytes(), preset=1)) for plane in planes) / len(plain),
        "entropy": bits / 32,
    }


def _entropy(plane: np.ndarray) -> float:
    """Bits per byte."""
    share = np.bincount(plane, minlength=256) / len(plane)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def _sample(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most `most` values, in 16 evenly spaced runs."""
    if len(numbers) <= most:
        return numbers
    starts = np.linspace(0, len(numbers) - most // 16, 16).astype(int)
    return np.concatenate([numbers[start : start + most // 16] for start in starts])
