"""Teacher update, optimizer step and gradient clipping, compared with loops over parameters and with flat buffers.

For the model of all datasets, after a released localization step: the optimizer and the clipping process the parameters
that have a gradient then, the teacher update all parameters. Flat buffers hold the same values in one contiguous
tensor; to use them, the model's parameters would have to be views of it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.report import markdown_table
from benchmarks.timing import ratios, spread, take_turns, wall_clock
from benchmarks.world import AS_REFERENCE, Ours, drawn_world, make_cfg, repetitions, verdict

HELP = "teacher update, optimizer step and clipping, compared with loops over parameters"
LOOP, FLAT = "loop over parameters", "flat buffers"
TARGETS = {"teacher update": 2.0}
"""Target speed-up over the loop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options besides the common ones."""


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    folder, root = drawn_world(images=args.batch)
    with folder:
        ours = Ours(make_cfg(args, root, AS_REFERENCE))
        ours.enter("loc/release")
        ours.step()
        rows = []
        for what, candidates in _candidates(ours).items():
            times = take_turns(candidates, repetitions(args, 15), wall_clock(args.device))
            for name in times:
                found = ratios(times, LOOP, name)
                target = verdict(statistics.median(found), TARGETS.get(what) if name == "fx_d2" else None)
                rows.append([what, name, spread([1000 * x for x in times[name]], 1), spread(found), target])
    return markdown_table(["what", "candidate", "ms", "times as fast", "target"], rows)


def _candidates(ours: Ours) -> dict[str, dict[str, Callable[[int], object]]]:
    trainer = ours.trainer
    model, teacher, optimizer = trainer.model, trainer.teacher, trainer.optimizer
    assert teacher is not None, "the config has no teacher"
    learning = [p for p in model.parameters() if p.grad is not None]
    loops = {name: _adamw(optimizer, foreach=name == "foreach") for name in (LOOP, "foreach")}
    momentum, limit = trainer.cfg.MODEL.TEACHER.MOMENTUM, 0.1

    @torch.no_grad()
    def average(_: int) -> None:
        for mine, theirs in zip(teacher.model.parameters(), model.parameters(), strict=True):
            mine.mul_(momentum).add_((1 - momentum) * theirs)

    def clip(foreach: bool) -> Callable[[int], object]:
        return lambda _: nn.utils.clip_grad_norm_(learning, limit, foreach=foreach)

    mine, theirs = (nn.utils.parameters_to_vector(x.parameters()).detach() for x in (teacher.model, model))
    one = nn.Parameter(nn.utils.parameters_to_vector(learning).detach())
    one.grad = nn.utils.parameters_to_vector(p.grad for p in learning)
    flat_adamw = torch.optim.AdamW([one], lr=optimizer.param_groups[0]["lr"], fused=True)
    return {
        "teacher update": {
            LOOP: average,
            FLAT: lambda _: mine.lerp_(theirs, 1 - momentum),
            "fx_d2": lambda _: ours.end_pass(),
        },
        "optimizer step": {
            **{name: lambda _, other=other: other.step() for name, other in loops.items()},
            FLAT: lambda _: flat_adamw.step(),
            "fx_d2": lambda _: optimizer.step(),
        },
        "gradient clipping": {
            LOOP: clip(False),
            FLAT: lambda _: nn.utils.clip_grad_norm_([one], limit),
            "fx_d2": clip(True),
        },
    }


def _adamw(optimizer: torch.optim.Optimizer, *, foreach: bool) -> torch.optim.Optimizer:
    """AdamW with the same parameter groups, not fused."""
    groups: list[dict[str, Any]] = [
        {key: group[key] for key in ("params", "lr", "weight_decay")} for group in optimizer.param_groups
    ]
    return torch.optim.AdamW(groups, foreach=foreach, fused=False)
