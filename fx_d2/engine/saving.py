"""When a run saves checkpoints, which ones are kept, and how it stops on request."""

from __future__ import annotations

import fnmatch
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from fx_d2.engine.checkpoint import class_lists
from fx_d2.engine.checkpoint_files import FINAL, best_name, link, path_of, rotate
from fx_d2.engine.resume import run_record
from fx_d2.engine.signals import EXIT_CODE
from fx_d2.structures import FXError

if TYPE_CHECKING:
    from fx_d2.engine.trainer import FXTrainer

logger = logging.getLogger(__name__)


class RunSaver:
    """Writes the run's checkpoints, on the main process.

    Attributes:
        best: {pattern: {"value", "iteration"}}: the best score so far for each pattern of SOLVER.CHECKPOINT_BEST.
        saved: iterations completed at the last checkpoint written by this process, 0 before the first.
    """

    def __init__(self, trainer: FXTrainer) -> None:
        self._trainer = trainer
        self._folder = Path(trainer.cfg.OUTPUT_DIR)
        self._record = run_record(trainer.cfg)
        self.best: dict[str, dict[str, Any]] = {}
        self.saved = 0

    @property
    def record(self) -> dict[str, Any]:
        """This command's `resume.run_record`."""
        return self._record

    def save(self, done: int) -> Path:
        """Write the state after `done` iterations, then delete the checkpoints that are not to be kept.

        Raises:
            FXError: it cannot be written; nothing is deleted.
        """
        trainer, node = self._trainer, self._trainer.cfg.SOLVER
        iteration = done - 1
        path, state = path_of(self._folder, iteration), trainer.schedule.at(iteration)
        trainer.checkpointer.save(
            path.stem,
            iteration=iteration,
            position={"cycle": state.cycle, "pass": state.pass_index, "step": state.step, "phase": str(state.phase)},
            seed=trainer.seed,
            best=self.best,
            evaluated=trainer.evaluated,
            classes=class_lists(trainer.model),
            **self._record,
        )
        self.saved = done
        if comm.is_main_process():
            every = node.CHECKPOINT_KEEP_CYCLES * trainer.schedule.cycle_length
            rotate(self._folder, keep=node.CHECKPOINTS_TO_KEEP, every=every)
        return path

    def finish(self, done: int) -> None:
        """Write the final state, also under the name `checkpoint_files.FINAL`. Raises as `save`."""
        self.save(done)
        self.name_final()

    def name_final(self) -> None:
        """Link the run's last checkpoint, which must exist, to the name `checkpoint_files.FINAL`."""
        if comm.is_main_process():
            link(path_of(self._folder, self._trainer.max_iter - 1), FINAL)

    def keep_best(self, metrics: Mapping[str, float], done: int) -> None:
        """Keep this state as model_best_<pattern>.pth for each pattern whose best score it improves."""
        raised = []
        for pattern in self._trainer.cfg.SOLVER.CHECKPOINT_BEST:
            value = _score(metrics, pattern)
            if value > self.best.get(pattern, {"value": -math.inf})["value"]:
                self.best[pattern] = {"value": value, "iteration": done - 1}
                raised.append(pattern)
        if not raised:
            return
        try:
            path = self.save(done)
            if done == self._trainer.max_iter:
                self.name_final()
            for pattern in raised:
                link(path, best_name(pattern))
                logger.info("best %s so far: %.4f", pattern, self.best[pattern]["value"])
        except FXError as error:
            logger.error("%s; training continues", error)


def _score(metrics: Mapping[str, float], pattern: str) -> float:
    """Mean of the defined metrics that match a pattern; -inf if all are undefined.

    Raises:
        FXError: the pattern matches no metric.
    """
    values = [float(value) for name, value in metrics.items() if fnmatch.fnmatchcase(name, pattern)]
    if not values:
        raise FXError(
            f"SOLVER.CHECKPOINT_BEST {pattern!r} matches no metric; available are, for example, {sorted(metrics)[:3]}"
        )
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else -math.inf


class CheckpointHook(HookBase):
    """Saves at the end of every N-th cycle, at intervals of steps and minutes, and at the end of the run."""

    trainer: FXTrainer

    def before_train(self) -> None:
        """Start the timer; link the final checkpoint if the run was killed right after writing it."""
        self._last = time.monotonic()
        if self.trainer.start_iter == self.trainer.max_iter:
            self.trainer.saver.name_final()

    def after_step(self) -> None:
        """Save when due. Only the final save must succeed; after any other failure the run continues."""
        done, final = self.trainer.iter + 1, self.trainer.iter + 1 == self.trainer.max_iter
        if not final and not self._due(done):
            return
        self._last = time.monotonic()
        try:
            (self.trainer.saver.finish if final else self.trainer.saver.save)(done)
        except FXError as error:
            if final:
                raise
            logger.error("%s; training continues until the next checkpoint is due", error)

    def _due(self, done: int) -> bool:
        node = self.trainer.cfg.SOLVER
        if done % (node.CHECKPOINT_CYCLES * self.trainer.schedule.cycle_length) == 0:
            return True
        if node.CHECKPOINT_STEPS and done % node.CHECKPOINT_STEPS == 0:
            return True
        # Each process has its own timer, but only the main process writes, without a collective.
        return 0 < node.CHECKPOINT_MINUTES * 60 <= time.monotonic() - self._last


class StopHook(HookBase):
    """Saves and exits with `signals.EXIT_CODE` at the step where the processes agree that a signal was received."""

    trainer: FXTrainer

    def before_train(self) -> None:
        """Install the signal handlers."""
        self.trainer.stop_request.install()

    def after_step(self) -> None:
        """Exit in all processes together, once the checkpoint has been written."""
        if not self.trainer.stopping:
            return
        name = self.trainer.stop_request.received or "a signal to another process"
        done = self.trainer.iter + 1
        if self.trainer.saver.saved != done:
            self.trainer.saver.save(done)
        comm.synchronize()
        logger.warning(
            "stopped by %s after iteration %d, checkpoint saved: continue with --resume (exit code %d)",
            name,
            self.trainer.iter,
            EXIT_CODE,
        )
        sys.exit(EXIT_CODE)

    def after_train(self) -> None:
        """Restore the handlers: interrupting what follows, the final evaluation, loses nothing."""
        self.trainer.stop_request.restore()
