"""Training hooks: phases, teacher, learning rate, progress, checkpoints, evaluation."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from fx_d2.data import images_in_pass
from fx_d2.engine.clock import RunClock, due_passes
from fx_d2.engine.evaluations import EvaluationLog
from fx_d2.engine.events import EventsHook, WriterHook, defined
from fx_d2.engine.lock import describe_parameters, parameters_of
from fx_d2.engine.saving import CheckpointHook, StopHook
from fx_d2.engine.schedule import PhaseState

if TYPE_CHECKING:
    from fx_d2.engine.trainer import FXTrainer

logger = logging.getLogger(__name__)

_QUIET_SECONDS = 30.0
"""Maximum time between progress lines within a pass."""


class PhaseHook(HookBase):
    """Enters each phase at its first step, applying its lock, and leaves it after its last, updating the teacher."""

    trainer: FXTrainer

    def before_step(self) -> None:
        """Enter the phase at its first step, or where a resumed run starts in the middle of a pass."""
        state = self.trainer.schedule.at(self.trainer.iter)
        if state.first or self.trainer.iter == self.trainer.start_iter:
            self.trainer.enter_phase(state)

    def after_step(self) -> None:
        """Leave the phase at the end of its pass."""
        if self.trainer.schedule.at(self.trainer.iter).last:
            self.trainer.leave_phase()


class ProgressHook(HookBase):
    """Logs what is trained at the start of each pass, and progress at its end and every half minute in between.

    The times left are estimates of `RunClock`.
    """

    trainer: FXTrainer

    def __init__(self, clock: RunClock, events: EventsHook) -> None:
        """clock: estimates the time left; events: provides the mean losses of the pass."""
        self._clock, self._events = clock, events
        self._pass_started = self._run_started = self._last_line = 0.0

    def before_train(self) -> None:
        """Start the timers."""
        self._run_started = self._last_line = time.perf_counter()

    def before_step(self) -> None:
        """Start the pass timer and log what is trained; also where a resumed run starts in the middle of a pass."""
        trainer = self.trainer
        state = trainer.schedule.at(trainer.iter)
        if not state.first and trainer.iter != trainer.start_iter:
            return
        self._pass_started = time.perf_counter()
        phase = state.phase
        learning, frozen = parameters_of(trainer.model, phase)
        batch = trainer.cfg.SCHEDULE.BATCH_SIZE[phase.task.upper()]
        images = min(images_in_pass(trainer.data.sizes[phase.dataset, phase.task], phase.share), state.steps * batch)
        logger.info(
            "%s  learns %s; frozen %s; %d images in %d steps of %d%s",
            self._place(state),
            describe_parameters(learning),
            describe_parameters(frozen),
            images,
            state.steps,
            batch,
            "" if state.first else f", from step {state.step + 1} on",
        )

    def after_step(self) -> None:
        """Log at the end of the pass, and every half minute within a long one."""
        trainer, now = self.trainer, time.perf_counter()
        state = trainer.schedule.at(trainer.iter)
        if not state.last and now - self._last_line < _QUIET_SECONDS:
            return
        self._last_line = now
        left = self._clock.left(trainer.schedule, trainer.iter + 1, now - self._run_started)
        best = "".join(f"  best {pattern} {found['value']:.4f}" for pattern, found in trainer.saver.best.items())
        logger.info(
            "%s  step %3d/%d  loss %8.4f  %5.1fs  left: pass %s, cycle %s, run %s%s",
            self._place(state),
            state.step + 1,
            state.steps,
            self._events.pass_means()["total_loss"],
            now - self._pass_started,
            *(datetime.timedelta(seconds=round(x)) for x in (left.in_pass, left.in_cycle, left.in_run)),
            best,
        )

    def _place(self, state: PhaseState) -> str:
        schedule, phase = self.trainer.schedule, state.phase
        return (
            f"cycle {state.cycle + 1}/{schedule.cycles} pass {state.pass_index + 1:2d}/{len(schedule.phases)} "
            f"{phase.dataset:<18s} {phase.task} {phase.mode:<7s}"
        )


class EvaluationHook(HookBase):
    """Evaluates at the end of every N-th pass and cycle, and at the end of the run; see `EvaluationLog`."""

    trainer: FXTrainer

    def __init__(self, log: EvaluationLog, clock: RunClock) -> None:
        """log: stores the metrics; clock: receives the evaluation times."""
        self._log, self._clock = log, clock

    def before_train(self) -> None:
        """Repeat an evaluation during which the run was interrupted."""
        done = self.trainer.start_iter
        missed = done > 0 and self._due(done) and self.trainer.evaluated != done
        if comm.is_main_process():
            again = missed or done == self.trainer.max_iter
            self._log.rewind(done - 1 if again else done)
        if missed:
            self._evaluate(done)

    def after_step(self) -> None:
        """Evaluate when due; the evaluation itself restores the modules' training modes."""
        if self._due(self.trainer.iter + 1):
            self._evaluate(self.trainer.iter + 1)

    def after_train(self) -> None:
        """Evaluate at the end unless the run failed: Detectron2 increments `iter` only after a successful step."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._evaluate(self.trainer.max_iter)

    def _due(self, done: int) -> bool:
        node, schedule = self.trainer.cfg.TEST, self.trainer.schedule
        state = schedule.at(done - 1)
        if done >= self.trainer.max_iter or not state.last:
            return False
        before = state.cycle * len(schedule.phases) + state.pass_index
        every = (node.EVAL_PASSES, node.EVAL_CYCLES * len(schedule.phases))
        return due_passes(before, before + 1, *every) > 0

    def _evaluate(self, done: int) -> None:
        if self.trainer.evaluate is None:
            return
        started = time.perf_counter()
        with torch.compiler.set_stance("force_eager"):  # batch sizes vary: compiling for each would take longer
            metrics = self.trainer.evaluate(self.trainer.models(), done == self.trainer.max_iter)
        self._clock.evaluation(time.perf_counter() - started)
        self.trainer.evaluated = done
        if comm.is_main_process():
            self._log.add(done, self.trainer.schedule.at(done - 1), metrics)
            self.trainer.storage.put_scalars(**defined(metrics), smoothing_hint=False)
            self.trainer.saver.keep_best(metrics, done)


def build_hooks(trainer: FXTrainer) -> Sequence[HookBase]:
    """The hooks in the required order: the teacher is updated before checkpoints are saved and models evaluated.

    Saving comes before evaluating, so an interrupted evaluation loses no steps.
    """
    test, folder = trainer.cfg.TEST, Path(trainer.cfg.OUTPUT_DIR)
    at_end = trainer.evaluate is not None
    clock = RunClock(eval_passes=test.EVAL_PASSES, eval_cycles=test.EVAL_CYCLES, at_end=at_end)
    built: list[HookBase] = [hooks.IterationTimer(), PhaseHook()]
    if comm.is_main_process():
        events = EventsHook(clock)
        built += [events, ProgressHook(clock, events)]
    built += [
        hooks.LRScheduler(trainer.optimizer, trainer.lr_schedule),
        CheckpointHook(),
        StopHook(),
        EvaluationHook(EvaluationLog(folder), clock),
    ]
    if comm.is_main_process():
        built.append(WriterHook(folder))
    return built
