"""Train, be killed, resume, be killed ... until the end, and compare with a run that nobody disturbed.

    python tests/engine/kill_and_resume.py CONFIG ROOT OUT [--workers 0 2] [--kills 12] [--seed 0] [--opts KEY VALUE]

Steps are drawn at random, the same number in each kind of phase; every third death is in the middle of writing a
checkpoint. Each attempt is a fork of this process, so that libraries are imported once. Prints a json line per death
and, per number of workers, {"workers", "difference", "tensors"}: the largest difference of any number in the files.
"""

import argparse
import itertools
import json
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


def make_cfg(args: argparse.Namespace, out: Path, workers: int) -> CfgNode:
    opts = ["DATASETS.ROOT", args.root, "OUTPUT_DIR", str(out), "DATALOADER.NUM_WORKERS", str(workers)]
    cfg = build_cfg(args.config, [*opts, "SOLVER.CHECKPOINT_STEPS", "2", *args.opts])
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
    """(iteration, while writing, phase) in order: as many in each kind of phase."""
    schedule, rng = FXTrainer(cfg).schedule, random.Random(seed)
    kinds: dict[str, list[int]] = {}
    for iteration in range(1, schedule.total):
        phase = schedule.at(iteration).phase
        kinds.setdefault(f"{phase.task}-{phase.mode}", []).append(iteration)
    share = max(1, count // len(kinds))
    drawn = sorted(i for places in kinds.values() for i in rng.sample(places, min(share, len(places))))
    chosen = []
    for number, iteration in enumerate(drawn):
        # A checkpoint is written after every second step.
        writing = number % 3 == 2 and (iteration + 1) % 2 == 0
        chosen.append((iteration, writing, str(schedule.at(iteration).phase)))
    return chosen


def difference(a: Any, b: Any) -> tuple[float, int]:
    """(largest difference, number of tensors) of two contents of checkpoints; infinite where they are unlike."""
    if isinstance(a, torch.Tensor):
        same = torch.equal(a, b)
        return (0.0 if same else float((a.double() - b.double()).abs().max()) or float("inf")), 1
    if isinstance(a, dict | list | tuple):
        pairs = [(a[k], b.get(k)) for k in a] if isinstance(a, dict) else list(itertools.zip_longest(a, b))
        results = [difference(x, y) for x, y in pairs] or [(0.0, 0)]
        return max(r[0] for r in results), sum(r[1] for r in results)
    return (0.0 if a == b else float("inf")), 0


def state(out: Path) -> dict[str, Any]:
    content = torch.load(out / "model_final.pth", weights_only=True)
    return {key: value for key, value in content.items() if key != "config"}


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
    assert attempt(make_cfg(args, out / "whole", 0)) == (0, 0)
    for workers in args.workers:
        cfg = make_cfg(args, out / f"killed{workers}", workers)
        for iteration, writing, phase in deaths(cfg, args.kills, args.seed):
            code, began = attempt(cfg, iteration, writing)
            assert code == -signal.SIGKILL, code
            where = {"phase": phase, "killed_at": iteration, "writing": writing, "began_at": began}
            sys.stdout.write(json.dumps({"workers": workers} | where) + "\n")
        code, began = attempt(cfg)
        assert code == 0, code
        largest, tensors = difference(state(out / "whole"), state(out / f"killed{workers}"))
        result = {"workers": workers, "began_at": began, "difference": largest, "tensors": tensors}
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
