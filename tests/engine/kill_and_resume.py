"""Train, be killed, resume, be killed ... until the end, and compare with a run that nobody disturbed.

    python tests/engine/kill_and_resume.py CONFIG ROOT OUT [--workers 0 2] [--kills 12] [--seed 0] [--opts KEY VALUE]

Steps are drawn at random, as many in each kind of phase; every third death is in the middle of writing a checkpoint.
Each attempt is a fork of this process, so that libraries are imported once. Prints, for each number of workers, a table
in Markdown. Its difference is the largest one of any number between the checkpoint that is gone on from (in the last
line: the run's last one) and that of the undisturbed run at the same step: weights, teacher, optimizer, all. It ends
with an error unless all are 0. OUT holds every checkpoint of the undisturbed run.
"""

import argparse
import itertools
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from fx_d2.data import register_datasets
from fx_d2.engine import FXTrainer, build_cfg
from fx_d2.engine.checkpoint_files import FINAL, numbered


class Killer(HookBase):
    """Kills its process before a step, or while the checkpoint after it is written; draws numbers in between."""

    def __init__(self, iteration: int, writing: bool) -> None:
        self._iteration, self._writing = iteration, writing

    def before_step(self) -> None:
        # What the run's numbers must not depend on: the state in which others left the generators.
        random.seed(os.getpid())
        np.random.seed(os.getpid())
        torch.manual_seed(os.getpid())
        if self.trainer.iter == self._iteration:
            if not self._writing:
                os.kill(os.getpid(), signal.SIGKILL)
            torch.save = _die_half_way


def _die_half_way(content: dict[str, Any], stream: Any) -> None:
    stream.write(b"PK" + bytes(100_000))
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def make_cfg(args: argparse.Namespace, out: Path, workers: int, *more: str) -> CfgNode:
    opts = ["DATASETS.ROOT", args.root, "OUTPUT_DIR", str(out), "DATALOADER.NUM_WORKERS", str(workers)]
    cfg = build_cfg(args.config, [*opts, "SOLVER.CHECKPOINT_STEPS", "2", *args.opts, *more])
    register_datasets(cfg)
    cfg.freeze()
    return cfg


def attempt(cfg: CfgNode, iteration: int = -1, writing: bool = False) -> tuple[int, int]:
    """(exit status, iteration at which it began) of one start of the run in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        trainer = FXTrainer(cfg)
        trainer.register_hooks([Killer(iteration, writing)])
        trainer.resume_or_load(True)
        os.write(write, str(trainer.start_iter).encode())
        trainer.train()
        os._exit(0)
    os.close(write)
    began = int(os.read(read, 32))
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), began


def deaths(cfg: CfgNode, count: int, seed: int) -> list[tuple[int, bool, str]]:
    """(iteration, while writing, phase) in order: as many in each kind of phase as can be."""
    schedule, rng = FXTrainer(cfg).schedule, random.Random(seed)
    kinds: dict[str, list[int]] = {}
    for iteration in range(1, schedule.total):
        phase = schedule.at(iteration).phase
        kinds.setdefault(f"{phase.task} {phase.mode}", []).append(iteration)
    drawn: list[int] = []
    for number, places in enumerate(kinds.values()):
        share = count * (number + 1) // len(kinds) - count * number // len(kinds)
        drawn += rng.sample(places, min(share, len(places)))
    chosen = []
    for number, iteration in enumerate(sorted(drawn)):
        writing = number % 3 == 2
        if writing and iteration % 2 == 0:  # a checkpoint is written after every second step
            iteration -= 1
        chosen.append((iteration, writing, str(schedule.at(iteration).phase)))
    return chosen


def difference(a: Any, b: Any) -> tuple[float, int]:
    """(largest difference, number of tensors) of two contents of checkpoints; infinite where they are unlike."""
    if isinstance(a, torch.Tensor):
        same = torch.equal(a, b)
        return (0.0 if same else float((a.double() - b.double()).abs().max()) or float("inf")), 1
    if isinstance(a, dict | list | tuple):
        pairs = [(a.get(k), b.get(k)) for k in a | b] if isinstance(a, dict) else list(itertools.zip_longest(a, b))
        results = [difference(x, y) for x, y in pairs] or [(0.0, 0)]
        return max(r[0] for r in results), sum(r[1] for r in results)
    return (0.0 if a == b else float("inf")), 0


def compare(out: Path, workers: int, name: str) -> tuple[float, int]:
    """`difference` of a checkpoint of the killed run to that of the undisturbed one."""
    paths = (out / "whole" / name, out / f"killed{workers}" / name)
    first, second = (torch.load(path, weights_only=True) for path in paths)
    del first["config"], second["config"]  # another OUTPUT_DIR
    return difference(first, second)


def row(*cells: object) -> None:
    sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("config", "root", "out"):
        parser.add_argument(name)
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    out = Path(args.out)
    assert attempt(make_cfg(args, out / "whole", 0, "SOLVER.CHECKPOINTS_TO_KEEP", "1000")) == (0, 0)
    worst = 0.0
    for workers in args.workers:
        folder = out / f"killed{workers}"
        cfg = make_cfg(args, folder, workers)
        sys.stdout.write(f"\n{workers} workers\n\n")
        row("killed at step", "phase", "while writing", "resumed at step", "difference")
        row(*["--"] * 5)
        expected = 0
        for iteration, writing, phase in deaths(cfg, args.kills, args.seed):
            code, began = attempt(cfg, iteration, writing)
            assert (code, began) == (-signal.SIGKILL, expected), (code, began, expected)
            there, largest = list(numbered(folder).values()), 0.0
            if there:
                expected = list(numbered(folder))[-1] + 1
                largest = compare(out, workers, there[-1].name)[0]
            row(iteration, phase, "yes" if writing else "", expected, f"{largest:g}")
            worst = max(worst, largest)
        assert attempt(cfg) == (0, expected)
        largest, tensors = compare(out, workers, FINAL)
        row("-", "the end", "", "", f"{largest:g} in {tensors} tensors")
        worst = max(worst, largest)
    if worst:
        sys.exit("the runs differ")


if __name__ == "__main__":
    main()
