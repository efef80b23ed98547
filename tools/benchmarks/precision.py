"""Losses of small training runs in float32 with 900 queries and in bfloat16 with 300.

The same synthetic images (datasets/prepare_synthetic.py, ChestX-Det: labels, boxes, masks), the same seeds and
initialisation, all passes of the recipe. The table gives the mean loss of each task over the first and the last cycle,
with the minimum and maximum over seeds; the figure (next to the report) shows the running mean. More queries add more
unmatched terms to the localization loss: compare the shape of its curve rather than its level.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from detectron2.engine import HookBase
from matplotlib.figure import Figure

from benchmarks.report import ROOT, markdown_table
from benchmarks.step import SAME
from benchmarks.timing import spread
from benchmarks.world import AS_RECOMMENDED, AS_REFERENCE, QUICK_CONFIG, RECOMMENDED, beside, make_cfg
from fx_d2.engine import FXTrainer
from fx_d2.structures import TASKS, FXError

HELP = "loss curves of bfloat16 with 300 queries compared with float32 with 900"
DATASET = "chestx_det"
PICTURE = "precision.png"

Curves = dict[str, list[float]]
"""Task -> losses of its steps, in order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--cycles", type=int, default=0, help="training cycles (default 8)")
    parser.add_argument("--images", type=int, default=0, help="training images (default 48)")
    parser.add_argument("--seeds", type=int, default=0, help="runs of each kind (default 2)")


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    usual = (1, 6, 1) if args.quick else (8, 48, 2)
    chosen = (args.cycles, args.images, args.seeds)
    cycles, images, seeds = (given or default for given, default in zip(chosen, usual, strict=True))
    found: dict[str, list[Curves]] = {}
    with tempfile.TemporaryDirectory(prefix="fx_d2_benchmark_") as folder:
        root = Path(folder)
        _draw(root, images)
        for name, opts in ((SAME, AS_REFERENCE), (RECOMMENDED, AS_RECOMMENDED)):
            found[name] = [_train(args, root, opts, cycles, seed) for seed in range(seeds)]
    picture = beside(args, PICTURE)
    _plot(found, picture)
    rows = []
    for task in TASKS:
        for name, curves in found.items():
            means = (spread([_mean(curve[task], cycles, end) for curve in curves], 4) for end in (0, 1))
            rows.append([task, name, str(len(curves[0][task])), *means])
    head = f"{images} images, {cycles} cycles, {seeds} seeds; figure: {picture.name}"
    columns = ["task", "candidate", "steps", "loss, first cycle", "loss, last cycle"]
    return f"{head}\n\n{markdown_table(columns, rows)}"


def _draw(root: Path, images: int) -> None:
    words = ["--output", str(root), "--seed", "0", "--datasets", DATASET, "--train", str(images), "--val", "1"]
    command = [sys.executable, str(ROOT / "datasets" / "prepare_synthetic.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FXError(f"the synthetic images could not be generated: {done.stderr.strip()}")


def _train(args: argparse.Namespace, root: Path, opts: tuple[str, ...], cycles: int, seed: int) -> Curves:
    run = root / f"run_{len(list(root.glob('run_*')))}"
    small = args.config_file or str(QUICK_CONFIG)
    args = argparse.Namespace(**vars(args) | {"config_file": small, "batch": max(args.batch, 8)})
    own = ["DATASETS.TRAIN", f"('{DATASET}_train',)", "SCHEDULE.CYCLES", str(cycles), "SCHEDULE.ITERS_PER_PASS", "0"]
    cfg = make_cfg(args, root, [*opts, *own, "SEED", str(seed), "OUTPUT_DIR", str(run)])
    trainer = FXTrainer(cfg)
    losses = _Losses()
    trainer.register_hooks([losses])
    trainer.resume_or_load(resume=False)
    trainer.train()
    return losses.curves


class _Losses(HookBase):
    """Records the loss of every step; the trainer's own history keeps only the latest ones."""

    trainer: FXTrainer

    def __init__(self) -> None:
        self.curves: Curves = {task: [] for task in TASKS}

    def after_step(self) -> None:
        task = self.trainer.schedule.at(self.trainer.iter).phase.task
        self.curves[task].append(self.trainer.step_losses["total_loss"])


def _mean(losses: list[float], cycles: int, end: int) -> float:
    """Mean of the first (0) or last (1) cycle."""
    steps = len(losses) // cycles
    return float(np.mean(losses[-steps:] if end else losses[:steps]))


def _plot(found: dict[str, list[Curves]], path: Path) -> None:
    figure = Figure(figsize=(4 * len(TASKS), 3.2), layout="constrained")
    axes = figure.subplots(1, len(TASKS))
    for axis, task in zip(axes, TASKS, strict=True):
        for colour, (name, curves) in enumerate(found.items()):
            for number, curve in enumerate(curves):
                losses = curve[task]
                width = max(1, len(losses) // 20)
                smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
                steps = np.arange(len(smooth)) + width
                axis.plot(steps, smooth, color=f"C{colour}", lw=1, label=name if number == 0 else None)
        axis.set(title=task, xlabel="step of the task", ylabel="loss, running mean")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
