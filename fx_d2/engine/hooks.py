"""What happens around a step: phases, teacher, learning rate, progress, checkpoints, evaluation."""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter

from fx_d2.engine.evaluations import EvaluationLog
from fx_d2.engine.lock import count_parameters
from fx_d2.engine.saving import CheckpointHook, StopHook

if TYPE_CHECKING:
    from fx_d2.engine.trainer import FXTrainer

logger = logging.getLogger(__name__)

_QUIET_SECONDS = 30.0
"""Longest silence inside a pass before a line says where it stands."""


class PhaseHook(HookBase):
    """Enters each phase at its first step, with its lock, and leaves it at its last, where the teacher moves."""

    trainer: FXTrainer

    def before_train(self) -> None:
        """A resumed run may start in the middle of a pass."""
        self.trainer.enter_phase(self.trainer.schedule.at(self.trainer.start_iter))

    def before_step(self) -> None:
        """Lock and release at the boundary."""
        state = self.trainer.schedule.at(self.trainer.iter)
        if state.first:
            self.trainer.enter_phase(state)

    def after_step(self) -> None:
        """The end of a pass."""
        if self.trainer.schedule.at(self.trainer.iter).last:
            self.trainer.leave_phase()


class ProgressHook(HookBase):
    """A line at the end of each pass: dataset, task, lock or release, steps, losses, time, time left."""

    trainer: FXTrainer

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._pass_started = self._run_started = self._last_line = 0.0

    def before_train(self) -> None:
        """Start the clocks."""
        self._run_started = self._last_line = self._pass_started = time.perf_counter()

    def before_step(self) -> None:
        """Start the pass's clock and say what learns."""
        state = self.trainer.schedule.at(self.trainer.iter)
        if state.first:
            self._pass_started, self._losses = time.perf_counter(), []
            learning, frozen = count_parameters(self.trainer.model, state.phase)
            logger.debug("%s: %s learn (%d), frozen %d", state.phase, state.phase.trainable, learning, frozen)

    def after_step(self) -> None:
        """Print at the end of the pass, and inside a long one every half minute."""
        if not comm.is_main_process():
            return
        state = self.trainer.schedule.at(self.trainer.iter)
        self._losses.append(self.trainer.storage.latest()["total_loss"][0])
        now = time.perf_counter()
        if not state.last and now - self._last_line < _QUIET_SECONDS:
            return
        self._last_line = now
        done = self.trainer.iter - self.trainer.start_iter + 1
        left = (now - self._run_started) / done * (self.trainer.max_iter - self.trainer.iter - 1)
        logger.info(
            "cycle %d/%d pass %2d/%d %-18s %s %-7s step %3d/%d  loss %8.4f  %5.1fs  left %s",
            state.cycle + 1,
            self.trainer.schedule.cycles,
            state.pass_index + 1,
            len(self.trainer.schedule.phases),
            state.phase.dataset,
            state.phase.task,
            state.phase.mode,
            state.step + 1,
            state.steps,
            sum(self._losses) / len(self._losses),
            now - self._pass_started,
            datetime.timedelta(seconds=round(left)),
        )


class EvaluationHook(HookBase):
    """Evaluates at the end of every N-th pass and cycle, and at the end of the run; see `EvaluationLog`."""

    trainer: FXTrainer

    def __init__(self, log: EvaluationLog) -> None:
        self._log = log

    def before_train(self) -> None:
        """A run that was interrupted while it evaluated makes up for it."""
        done = self.trainer.start_iter
        missed = done > 0 and self._due(done) and self.trainer.evaluated != done
        if comm.is_main_process():
            again = missed or done == self.trainer.max_iter
            self._log.rewind(done - 1 if again else done)
        if missed:
            self._evaluate(done)

    def after_step(self) -> None:
        """In between; the phase's modes are put back by the evaluation itself."""
        if self._due(self.trainer.iter + 1):
            self._evaluate(self.trainer.iter + 1)

    def after_train(self) -> None:
        """At the end, unless the run broke off."""
        if self.trainer.iter + 1 >= self.trainer.max_iter and not self.trainer.stopping:
            self._evaluate(self.trainer.max_iter)

    def _due(self, done: int) -> bool:
        node, schedule = self.trainer.cfg.TEST, self.trainer.schedule
        state = schedule.at(done - 1)
        if done >= self.trainer.max_iter or not state.last:
            return False
        passes = state.cycle * len(schedule.phases) + state.pass_index + 1
        by_pass = node.EVAL_PASSES > 0 and passes % node.EVAL_PASSES == 0
        return by_pass or (node.EVAL_CYCLES > 0 and done % (node.EVAL_CYCLES * schedule.cycle_length) == 0)

    def _evaluate(self, done: int) -> None:
        if self.trainer.evaluate is None:
            return
        metrics = self.trainer.evaluate(self.trainer.models(), done == self.trainer.max_iter)
        self.trainer.evaluated = done
        if comm.is_main_process():
            self._log.add(done, self.trainer.schedule.at(done - 1), metrics)
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
            self.trainer.saver.keep_best(metrics, done)


def build_hooks(trainer: FXTrainer) -> Sequence[HookBase]:
    """The hooks in the order in which they must run: the teacher moves before anything is saved or evaluated.

    Saved before evaluated, so that what interrupts an evaluation costs no step.
    """
    built: list[HookBase] = [
        hooks.IterationTimer(),
        PhaseHook(),
        hooks.LRScheduler(trainer.optimizer, trainer.lr_schedule),
        ProgressHook(),
        CheckpointHook(),
        StopHook(),
        EvaluationHook(EvaluationLog(Path(trainer.cfg.OUTPUT_DIR))),
    ]
    if comm.is_main_process():
        folder = trainer.cfg.OUTPUT_DIR
        writers = [JSONWriter(os.path.join(folder, "metrics.json")), TensorboardXWriter(folder)]
        built.append(hooks.PeriodicWriter(writers, period=20))
    return built
