"""How long a step waits for its images: the trainer's data loader with simulated steps.

PNGs of 1024 pixels, loaded and augmented by worker processes as in training, cycling through all kinds of passes; once
as they are, once from a cache of 256 pixels. A step is simulated by sleeping, which leaves the CPU to the workers, as a
step on a GPU does. The share is the waiting time over the total time, without the first batch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode

from benchmarks.report import markdown_table
from benchmarks.world import annotated_image, draw_datasets, make_cfg, three_task_dataset
from fx_d2.data import build_train_data, cache_images, write_split
from fx_d2.data.table import BY_NAME, PRETRAINING
from fx_d2.engine.schedule import build_schedule

HELP = "how long a step waits for its images, with and without a cache"
CACHE_SIZE = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--workers", type=int, default=4, help="data loader worker processes (default 4)")
    parser.add_argument("--images-per-step", type=int, default=24, help="batch size (default 24)")
    parser.add_argument("--steps", type=int, default=0, help="steps per row (default 20)")
    parser.add_argument(
        "--step-seconds", type=float, nargs="+", default=[], help="simulated step times (default 0.05 0.2 0.8)"
    )


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    name = three_task_dataset(PRETRAINING)
    images, side, steps = (4, 256, 3) if args.quick else (48, 1024, args.steps or 20)
    rows = []
    with tempfile.TemporaryDirectory(prefix="fx_d2_benchmark_") as folder:
        root = draw_datasets(Path(folder) / "full", images=images, side=side, names=[name])
        for title, where in (("as they are", root), (f"cache of {CACHE_SIZE}", _cached(root, name, side))):
            cfg = _config(args, where, name)
            for seconds in args.step_seconds or ([0.01] if args.quick else [0.05, 0.2, 0.8]):
                waited, total = _run(cfg, steps, seconds)
                rate = (steps - 1) * args.images_per_step / total
                cells = [f"{seconds:g}", f"{waited / (steps - 1):.3f}", f"{100 * waited / total:.1f} %", f"{rate:.0f}"]
                rows.append([title, *cells])
    columns = ["images", "a step takes, s", "and waits, s", "share of waiting", "images/s"]
    head = f"{args.images_per_step} images per step, {args.workers} workers, PNGs of {side} pixels"
    return f"{head}\n\n{markdown_table(columns, rows)}"


def _config(args: argparse.Namespace, root: Path, name: str) -> CfgNode:
    opts = ["DATASETS.TRAIN", f"('{name}_train',)", "DATALOADER.NUM_WORKERS", str(args.workers)]
    args = argparse.Namespace(**vars(args) | {"batch": args.images_per_step})
    return make_cfg(args, root, opts)


def _cached(root: Path, name: str, side: int) -> Path:
    """The same dataset with images cached at CACHE_SIZE; returns its root."""
    spec, rng, target = BY_NAME[name], np.random.default_rng(0), root.parent / "cached"
    files = sorted((root / "images").iterdir())
    images = [annotated_image(spec, rng, file.name, side) for file in files]
    rows = cache_images(images, image_root=root / "images", cache_root=target / "images", shorter=CACHE_SIZE)
    write_split(target / name / "train.json", spec=spec, split="train", image_root="../images", images=rows)
    return target


def _run(cfg: CfgNode, steps: int, seconds: float) -> tuple[float, float]:
    """Seconds (waiting, total) of the steps after the first."""
    cv2.setNumThreads(0)
    data = build_train_data(cfg)
    schedule = build_schedule(cfg, data.sizes)
    batches = iter(data.loader(schedule, start_iter=0, num_iters=steps, rank=0, world_size=1, seed=0))
    next(batches)
    time.sleep(seconds)
    waited, start = 0.0, time.perf_counter()
    for _ in range(steps - 1):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(seconds)
    return waited, time.perf_counter() - start
