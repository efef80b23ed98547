"""Seconds from starting `tools/train_net.py` to the end of its first step, in a separate process.

"first" runs without any library's byte code, as after an installation; "again" is the same command run again. Library
files come from the page cache in both cases, because this process uses them, too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import markdown_table
from benchmarks.timing import spread
from benchmarks.world import draw_datasets, make_cfg, recommended, repetitions
from fx_d2.structures import FXError

HELP = "time from the training command to the end of its first step"
MARKS = ("imports", "trainer built", "first step done")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options besides the common ones."""


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    with tempfile.TemporaryDirectory(prefix="fx_d2_benchmark_") as folder:
        root = draw_datasets(Path(folder), images=args.batch)
        config = root / "config.yaml"
        config.write_text(make_cfg(args, root, recommended(args.device)[1]).dump(), encoding="utf-8")
        first = _start(args, config, root)
        again = [_start(args, config, root) for _ in range(repetitions(args, 3))]
    rows = [["first", *(f"{first[mark]:.1f}" for mark in MARKS)]]
    rows.append(["again", *(spread([found[mark] for found in again], 1) for mark in MARKS)])
    return markdown_table(["seconds until", *MARKS], rows)


def _start(args: argparse.Namespace, config: Path, root: Path) -> dict[str, float]:
    """Seconds until each mark of a training run that ends after its first step."""
    tools = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(tools), str(tools.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(root / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= {"OMP_NUM_THREADS": str(args.threads)} if args.threads else {}
    started = time.time()
    command = [
        sys.executable,
        "-m",
        "benchmarks.startup",
        "--config-file",
        str(config),
        "OUTPUT_DIR",
        str(root / "run"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FXError(f"the training run did not start: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    marks = json.loads(done.stdout.strip().splitlines()[-1])
    return {mark: moment - started for mark, moment in marks.items()}


def _child(argv: list[str]) -> None:
    """Run `tools/train_net.py` until its first step is done, and print the times of the marks."""
    train_net = importlib.import_module("train_net")
    from fx_d2.engine import FXTrainer

    marks = {MARKS[0]: time.time()}
    build, step = FXTrainer.__init__, FXTrainer.run_step

    def timed_build(self: FXTrainer, *arguments: object, **others: object) -> None:
        build(self, *arguments, **others)
        marks[MARKS[1]] = time.time()

    def timed_step(self: FXTrainer) -> None:
        step(self)
        marks[MARKS[2]] = time.time()
        print(json.dumps(marks), flush=True)
        os._exit(0)

    FXTrainer.__init__, FXTrainer.run_step = timed_build, timed_step
    train_net.start(argv)


if __name__ == "__main__":
    _child(sys.argv[1:])
