"""Dry run: a few real steps of each kind of pass, with time and memory, before a long training run."""

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
    """Measurements of one kind of pass.

    Attributes:
        phase: the phase that was measured.
        seconds: time of the second step, of the slowest process.
        reading: seconds to load and augment a process's share of the batch, without workers.
        memory: peak memory in bytes, of the process with the largest.
        learning: number of trainable parameters, by component.
        frozen: number of parameters that take part but are frozen, by component.
    """

    phase: Phase
    seconds: float
    reading: float
    memory: int
    learning: Mapping[str, int]
    frozen: Mapping[str, int]


def rehearse(trainer: FXTrainer, workers: int) -> str:
    """Run each kind of pass of a trainer that is ready to train, and return a report of the measurements.

    For each kind, two steps on one real batch, with teacher and optimizer, on the dataset with the most classes among
    those of that kind; all batches of a task have the same size. This changes the trainer's weights; nothing is saved.
    A collective call.

    Args:
        trainer: built with DATALOADER.NUM_WORKERS 0, so loading can be timed.
        workers: number of workers of the actual run.

    Raises:
        FXError: not enough disk space for checkpoints, an unreadable image, or a non-finite loss.
    """
    on_first(lambda: check_disk(trainer.cfg, trainer.model, trainer.teacher))
    memory = PeakMemory(trainer.model.device)
    measured = {}
    with EventStorage(0) as trainer.storage:
        for kind, index in representatives(trainer.schedule, _classes(trainer)).items():
            measured[kind] = _try(trainer, index, memory)
    lines = [kinds_table(trainer.schedule, measured), f"memory: {memory.source}, maximum over processes", ""]
    return "\n".join([*lines, durations(trainer.schedule, measured, workers), disk_line(trainer)])


def _classes(trainer: FXTrainer) -> dict[tuple[str, str], int]:
    return {(name, task): len(spec.classes(task)) for name, spec in trainer.model.specs.items() for task in spec.tasks}


def representatives(schedule: PhaseSchedule, classes: Mapping[tuple[str, str], int]) -> dict[Hashable, int]:
    """For each kind of pass, the index in the first cycle of its first pass on the dataset with the most classes."""
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
    """One row per kind of pass, for a terminal 160 columns wide."""
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
    """Seconds per cycle: the slower of loading and computing, which overlap, or their sum without workers."""
    seconds = 0.0
    for phase, steps in zip(schedule.phases, schedule.steps, strict=True):
        one = measured[phase.kind]
        seconds += steps * (max(one.seconds, one.reading / workers) if workers else one.seconds + one.reading)
    return seconds


def durations(schedule: PhaseSchedule, measured: Mapping[Hashable, Measured], workers: int) -> str:
    """The estimated duration of a cycle and of the run, and what it excludes."""
    cycle = cycle_seconds(schedule, measured, workers)
    slow = [str(one.phase) for one in measured.values() if one.reading > one.seconds * max(workers, 1)]
    text = (
        f"estimated: {_time(cycle)} per cycle, {_time(cycle * schedule.cycles)} for SCHEDULE.CYCLES {schedule.cycles}, "
        f"without evaluations and saving, with DATALOADER.NUM_WORKERS {workers}"
    )
    return text + (f"; loading is slower than computing in {', '.join(slow)}" if slow and workers else "")


def disk_line(trainer: FXTrainer) -> str:
    """The disk space required by checkpoints and available in OUTPUT_DIR."""
    size, count = checkpoint_bytes(trainer.cfg, trainer.model, trainer.teacher), checkpoints_kept(trainer.cfg)
    free = shutil.disk_usage(trainer.cfg.OUTPUT_DIR).free
    return (
        f"a checkpoint takes {size / 1e9:.3f} GB, up to {count} of them {count * size / 1e9:.2f} GB; "
        f"{trainer.cfg.OUTPUT_DIR} has {free / 1e9:.1f} GB free"
    )


def _time(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))
