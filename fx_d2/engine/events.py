"""The scalars in metrics.json and TensorBoard: metrics of steps and passes, named by dataset and task."""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from fvcore.common.history_buffer import HistoryBuffer

from fx_d2.engine.clock import RunClock
from fx_d2.engine.evaluations import keep_lines
from fx_d2.engine.memory import memory_used
from fx_d2.modeling import FoundationX

if TYPE_CHECKING:
    from fx_d2.engine.trainer import FXTrainer

METRICS = "metrics.json"

PERIOD = 20
"""Write every PERIOD steps and at the end of each pass. A line per step would fill a disk: a run has 10^6 steps."""


class LearningRates:
    """The learning rate of each component; the largest one if its parameter groups differ."""

    def __init__(self, model: FoundationX, optimizer: torch.optim.Optimizer) -> None:
        """Map each component to the optimizer's parameter groups that contain its parameters."""
        self._optimizer = optimizer
        component_of = {p: name.split(".", 1)[0] for name, p in model.named_parameters()}
        groups: dict[str, set[int]] = defaultdict(set)
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                groups[component_of[parameter]].add(index)
        self._groups = dict(groups)

    def now(self) -> dict[str, float]:
        """{component: learning rate}."""
        groups = self._optimizer.param_groups
        return {name: float(max(groups[i]["lr"] for i in indices)) for name, indices in self._groups.items()}


class EventsHook(HookBase):
    """Records the scalars of a step beyond its losses and, at the end of a pass, the mean losses over the pass.

    Runs on the main process, before the hook that updates the learning rates. All values are available on the host, so
    nothing synchronises with the device. Names, for dataset D, task T and mode M (lock, release):

    - D/T/<loss>, D/T/total_loss, D/T/grad_norm (from `FXTrainer`), D/T/step_time: of one step;
    - pass/D/T/M/<loss>: means over the steps of a pass run by this process, at its last step;
    - lr/<component>; cycle, pass (0-based); memory_mb (`memory.memory_used`); step_time, data_time in seconds.
    """

    trainer: FXTrainer

    def __init__(self, clock: RunClock) -> None:
        """clock: receives the step times."""
        self._clock = clock
        self._sums: dict[str, float] = {}
        self._count = 0

    def before_train(self) -> None:
        """Set up what needs the complete optimizer."""
        self._rates = LearningRates(self.trainer.model, self.trainer.optimizer)
        # Detectron2 would keep 10^6 values per name, gigabytes in all; the writers look back PERIOD steps at most.
        self.trainer.storage.histories().default_factory = functools.partial(HistoryBuffer, max_length=PERIOD)
        self._started = time.perf_counter()

    def before_step(self) -> None:
        """Start timing the step."""
        if self.trainer.schedule.at(self.trainer.iter).first:
            self._sums, self._count = {}, 0
        self._started = time.perf_counter()

    def after_step(self) -> None:
        """Record the step's scalars."""
        trainer = self.trainer
        state, seconds = trainer.schedule.at(trainer.iter), time.perf_counter() - self._started
        self._clock.step(state.phase.kind, seconds)
        self._count += 1
        for name, value in trainer.step_losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        slot = f"{state.phase.dataset}/{state.phase.task}"
        scalars = {
            "cycle": state.cycle,
            "pass": state.pass_index,
            "step_time": seconds,
            f"{slot}/step_time": seconds,
            "memory_mb": memory_used(trainer.model.device) / 2**20,
        }
        scalars |= {f"lr/{component}": rate for component, rate in self._rates.now().items()}
        if state.last:
            scalars |= {f"pass/{slot}/{state.phase.mode}/{k}": v for k, v in self.pass_means().items()}
        trainer.storage.put_scalars(**scalars, smoothing_hint=False)

    def pass_means(self) -> dict[str, float]:
        """Mean losses over the steps of the current pass so far."""
        return {name: total / self._count for name, total in self._sums.items()}


class WriterHook(HookBase):
    """Writes metrics.json and TensorBoard events every PERIOD steps and at the end of each pass and of the run.

    A resumed run appends to the same files; entries of steps that it will repeat are dropped first.
    """

    trainer: FXTrainer

    def __init__(self, folder: Path) -> None:
        """folder: the run's OUTPUT_DIR; nothing is written before training starts."""
        self._folder = folder
        self._writers: list[EventWriter] = []

    def before_train(self) -> None:
        """Open the files."""
        start = self.trainer.start_iter
        keep_lines(self._folder / METRICS, lambda line: line["iteration"] < start)
        purge = {"purge_step": start} if start else {}
        self._writers = [JSONWriter(str(self._folder / METRICS)), TensorboardXWriter(str(self._folder), **purge)]

    def after_step(self) -> None:
        """Write when due."""
        done = self.trainer.iter + 1
        if done % PERIOD == 0 or self.trainer.schedule.at(self.trainer.iter).last:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        """Write what earlier hooks recorded at the end, or before the run was interrupted."""
        for writer in self._writers:
            writer.write()
            writer.close()


def defined(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without NaNs, which JSON cannot represent."""
    return {name: value for name, value in metrics.items() if not math.isnan(value)}
