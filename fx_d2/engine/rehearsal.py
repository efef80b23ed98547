"""A dry run: a few real steps of each kind of pass, with their time and memory, before a training of days."""

from __future__ import annotations

import datetime
import itertools
import shutil
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from tabulate import tabulate  # type: ignore[import-untyped]

from fx_d2.engine.distributed import on_first
from fx_d2.engine.guards import check_disk, checkpoint_bytes, checkpoints_kept
from fx_d2.engine.lock import describe_parameters, parameters_of
from fx_d2.engine.memory import PeakMemory
from fx_d2.engine.schedule import PhaseSchedule
from fx_d2.structures import Phase

if TYPE_CHECKING:
    from fx_d2.engine.trainer import FXTrainer


@dataclass(frozen=True)
class Measured:
    """A kind of pass, tried.

    Attributes:
        phase: the pass that was tried.
        seconds: of a step that is not the first, of the slowest process.
        reading: seconds to read and augment a process's part of the batch, without workers.
        memory: peak bytes, of the largest process.
        learning: parameters that learn, by component.
        frozen: parameters that take part and do not learn.
    """

    phase: Phase
    seconds: float
    reading: float
    memory: int
    learning: Mapping[str, int]
    frozen: Mapping[str, int]


def rehearse(trainer: FXTrainer, workers: int) -> str:
    """Try each kind of pass of a trainer that is ready to train, and tell what was measured.

    Two steps each on one real batch, with teacher and optimizer, on the dataset with most classes of those the kind
    runs on; batches of a task are all equally large. The weights are not those of a run afterwards; nothing is saved.
    A collective call.

    Args:
        trainer: built with DATALOADER.NUM_WORKERS 0, so that reading can be timed.
        workers: that the training will have.

    Raises:
        FXError: no room for checkpoints, an unreadable image, a loss that is not finite.
    """
    on_first(lambda: check_disk(trainer.cfg, trainer.model, trainer.teacher))
    memory = PeakMemory(trainer.model.device)
    measured = {}
    with EventStorage(0) as trainer.storage:
        for kind, index in representatives(trainer.schedule, _classes(trainer)).items():
            measured[kind] = _try(trainer, index, memory)
    lines = [kinds_table(trainer.schedule, measured), f"memory: {memory.source}, the largest of the processes", ""]
    return "\n".join([*lines, durations(trainer.schedule, measured, workers), disk_line(trainer)])


def _classes(trainer: FXTrainer) -> dict[tuple[str, str], int]:
    return {(name, task): len(spec.classes(task)) for name, spec in trainer.model.specs.items() for task in spec.tasks}


def representatives(schedule: PhaseSchedule, classes: Mapping[tuple[str, str], int]) -> dict[Hashable, int]:
    """Of each kind of pass the first one on the dataset with most classes: kind -> its place in the first cycle."""
    chosen: dict[Hashable, int] = {}
    for index, phase in enumerate(schedule.phases):
        before = chosen.get(phase.kind)
        known = -1 if before is None else classes[schedule.phases[before].dataset, phase.task]
        if classes[phase.dataset, phase.task] > known:
            chosen[phase.kind] = index
    return chosen


def _try(trainer: FXTrainer, index: int, memory: PeakMemory) -> Measured:
    """Two steps on the first batch of a pass of the first cycle."""
    trainer.iter = trainer.schedule.cycle(0).starts[index]
    trainer.storage.iter = trainer.iter
    state = trainer.schedule.at(trainer.iter)
    loader = trainer.data.loader(
        trainer.schedule,
        start_iter=trainer.iter,
        num_iters=1,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        seed=trainer.seed,
    )
    started = time.perf_counter()
    batch = next(iter(loader))
    reading = time.perf_counter() - started
    memory.reset()
    trainer.enter_phase(state)
    seconds = 0.0
    for _ in range(2):
        trainer.feed(itertools.repeat(batch))
        comm.synchronize()
        started = time.perf_counter()
        trainer.run_step()
        if trainer.model.device.type == "cuda":
            torch.cuda.synchronize(trainer.model.device)
        seconds = time.perf_counter() - started
    trainer.leave_phase()
    every = comm.all_gather((seconds, reading, memory.read()))
    seconds, reading, peak = (max(values) for values in zip(*every, strict=True))
    return Measured(state.phase, seconds, reading, peak, *parameters_of(trainer.model, state.phase))


def kinds_table(schedule: PhaseSchedule, measured: Mapping[Hashable, Measured]) -> str:
    """A row for each kind, for a terminal of 160 columns."""
    rows = []
    for kind, one in measured.items():
        steps = sum(n for phase, n in zip(schedule.phases, schedule.steps, strict=True) if phase.kind == kind)
        rows.append(
            [
                one.phase.task,
                one.phase.dataset,
                describe_parameters(one.learning),
                describe_parameters(one.frozen),
                f"{steps:,}",
                f"{one.seconds:.3f}",
                f"{one.reading:.3f}",
                f"{one.memory / 2**20:,.0f}",
            ]
        )
    headers = ["task", "tried on", "learns", "frozen", "steps", "s/step", "s/read", "peak MB"]
    align = ["left"] * 4 + ["right"] * 4
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align)


def cycle_seconds(schedule: PhaseSchedule, measured: Mapping[Hashable, Measured], workers: int) -> float:
    """Seconds of a cycle: workers read while steps compute, so that the slower of both counts; without any, both."""
    seconds = 0.0
    for phase, steps in zip(schedule.phases, schedule.steps, strict=True):
        one = measured[phase.kind]
        seconds += steps * (max(one.seconds, one.reading / workers) if workers else one.seconds + one.reading)
    return seconds


def durations(schedule: PhaseSchedule, measured: Mapping[Hashable, Measured], workers: int) -> str:
    """What a cycle and the run will take, and what that leaves out."""
    cycle = cycle_seconds(schedule, measured, workers)
    slow = [str(one.phase) for one in measured.values() if one.reading > one.seconds * max(workers, 1)]
    text = (
        f"estimated: {_time(cycle)} a cycle, {_time(cycle * schedule.cycles)} the run of {schedule.cycles} cycles, "
        f"without evaluations and saving, with DATALOADER.NUM_WORKERS {workers}"
    )
    return text + (f"; reading is the slower part in {', '.join(slow)}" if slow and workers else "")


def disk_line(trainer: FXTrainer) -> str:
    """What checkpoints take and what the disk has."""
    size, count = checkpoint_bytes(trainer.cfg, trainer.model, trainer.teacher), checkpoints_kept(trainer.cfg)
    free = shutil.disk_usage(trainer.cfg.OUTPUT_DIR).free
    return (
        f"a checkpoint takes {size / 2**30:.3f} GB, up to {count} of them {count * size / 2**30:.2f} GB; "
        f"{trainer.cfg.OUTPUT_DIR} has {free / 2**30:.1f} GB free"
    )


def _time(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))
