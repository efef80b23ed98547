"""The training schedule as a pure function: the phase of each iteration."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from fx_d2.data import steps_in_pass
from fx_d2.structures import COMPONENTS, TASK_COMPONENTS, DatasetSpec, FXError, Phase, specs_of

ORDERS = ("listed", "shuffled", "largest_first", "smallest_first")
"""Values of SCHEDULE.ORDER."""

_REQUIRED = {"task", "share", "train"}
_OPTIONAL = {"passes", "steps", "datasets"}


def build_schedule(cfg: CfgNode, sizes: Mapping[tuple[str, str], int], seed: int = 0) -> PhaseSchedule:
    """The run's schedule.

    Args:
        cfg: SCHEDULE and DATASETS.TRAIN are read; the datasets must be registered.
        sizes: numbers of annotated training images by (dataset, task).
        seed: of the run; determines the order of datasets with SCHEDULE.ORDER shuffled.

    Raises:
        FXError: see `check_schedule`; or a pass has no images.
    """
    check_schedule(cfg)
    node = cfg.SCHEDULE
    specs = list(specs_of(cfg.DATASETS.TRAIN))
    if node.ORDER in ("largest_first", "smallest_first"):
        # The sort is stable: datasets of equal size keep their order.
        specs.sort(key=lambda spec: _images(spec.name, sizes), reverse=node.ORDER == "largest_first")
    phases = build_cycle(specs, node.STRATEGY)
    steps = []
    for phase in phases:
        size, batch = sizes[phase.dataset, phase.task], node.BATCH_SIZE[phase.task.upper()]
        if not size:
            raise FXError(f"{phase.dataset}: no training image is annotated for {phase.task!r}")
        caps = [cap for cap in (phase.max_steps, node.ITERS_PER_PASS) if cap > 0]
        steps.append(min([steps_in_pass(size, phase.share, batch), *caps]))
    shuffle = seed if node.ORDER == "shuffled" else None
    return PhaseSchedule(phases, steps, node.CYCLES, repeat=node.REPEAT, shuffle=shuffle)


def check_schedule(cfg: CfgNode) -> None:
    """Validate SCHEDULE, without reading any dataset.

    Raises:
        FXError: an invalid value or strategy row, or a name that is not a dataset of DATASETS.TRAIN.
    """
    node = cfg.SCHEDULE
    specs = specs_of(cfg.DATASETS.TRAIN)
    if node.CYCLES < 1 or node.ITERS_PER_PASS < 0:
        raise FXError("SCHEDULE.CYCLES must be at least 1, SCHEDULE.ITERS_PER_PASS 0 (no limit) or more")
    if node.ORDER not in ORDERS:
        raise FXError(f"SCHEDULE.ORDER is {node.ORDER!r}: choose one of {list(ORDERS)}")
    for name, count in node.REPEAT.items():
        _check_names([name], specs, f"SCHEDULE.REPEAT {{{name}: {count}}}")
        if type(count) is not int or count < 1:
            raise FXError(f"SCHEDULE.REPEAT {{{name}: {count}}}: give a whole number of 1 or more")
    if specs:  # an empty DATASETS.TRAIN is reported by build_train_data
        build_cycle(specs, node.STRATEGY)


def build_cycle(specs: Sequence[DatasetSpec], strategy: Sequence[Mapping[str, Any]]) -> tuple[Phase, ...]:
    """One visit of each dataset, in order: the passes of all strategy rows that apply to it, in order.

    Args:
        specs: dataset rows; the paper's eleven give 20 (dataset, task) slots and 29 passes.
        strategy: rows in the format of `config.PAPER_STRATEGY`: "task", "share", "train"; optionally "passes" (number
            of consecutive repetitions, each with its own sample of images), "steps" (maximum per pass; 0 = no limit)
            and "datasets" (default: all that have the task).

    Raises:
        FXError: a row is invalid, or no row applies to any dataset.
    """
    for row in strategy:
        _check_row(row, specs)
    phases = tuple(
        Phase(spec.name, row["task"], tuple(row["train"]), float(row["share"]), row.get("steps", 0))
        for spec in specs
        for row in strategy
        if row["task"] in spec.tasks and spec.name in row.get("datasets", [spec.name])
        for _ in range(row.get("passes", 1))
    )
    if not phases:
        raise FXError("SCHEDULE.STRATEGY has no task that any dataset of DATASETS.TRAIN is annotated for")
    return phases


def _check_row(row: Mapping[str, Any], specs: Sequence[DatasetSpec]) -> None:
    where = f"SCHEDULE.STRATEGY row {row}"
    if not isinstance(row, Mapping) or not _REQUIRED <= set(row) <= _REQUIRED | _OPTIONAL:
        raise FXError(f"{where}: a row needs the keys task, share, train and may have {', '.join(sorted(_OPTIONAL))}")
    if row["task"] not in list(TASK_COMPONENTS):
        raise FXError(f"{where}: task must be one of {sorted(TASK_COMPONENTS)}")
    allowed, train = TASK_COMPONENTS[row["task"]], row["train"]
    if not _are_names(train) or len(set(train)) < len(train) or not set(train) <= set(allowed):
        raise FXError(f"{where}: train must list some of {list(allowed)}, each once (of all {list(COMPONENTS)})")
    if not _is_number(row["share"]) or not 0 < row["share"] <= 1:
        raise FXError(f"{where}: share must be in (0, 1]")
    for key, least in (("passes", 1), ("steps", 0)):
        if type(row.get(key, least)) is not int or row.get(key, least) < least:
            raise FXError(f"{where}: {key} must be a whole number of {least} or more")
    if "datasets" in row:
        names = row["datasets"]
        if not _are_names(names):
            raise FXError(f"{where}: datasets must be a list of names; omit the key to select all")
        _check_names(names, specs, where)
        lacking = [spec.name for spec in specs if spec.name in names and row["task"] not in spec.tasks]
        if lacking:
            raise FXError(f"{where}: {', '.join(lacking)} has no annotations for {row['task']}")


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_names(names: Sequence[str], specs: Sequence[DatasetSpec], where: str) -> None:
    known = [spec.name for spec in specs]
    strange = [name for name in names if name not in known]
    if strange:
        raise FXError(f"{where}: {strange[0]!r} is not a dataset of DATASETS.TRAIN; these are {', '.join(known)}")


def _images(dataset: str, sizes: Mapping[tuple[str, str], int]) -> int:
    """Size of a dataset: the number of images annotated for the task that has the most."""
    return max((count for (name, _), count in sizes.items() if name == dataset), default=0)


def spread_visits(datasets: Sequence[str], repeat: Mapping[str, int]) -> list[str]:
    """The order of visits in a cycle: each dataset `repeat` times (default once), evenly spread.

    The n visits of a dataset are 1/n of the cycle apart, also across the end of the cycle. First visits are in the
    order of `datasets`; without repetitions this is the whole order.
    """
    visits = [
        (Fraction(k * len(datasets) + i, repeat.get(name, 1) * len(datasets)), i, name)
        for i, name in enumerate(datasets)
        for k in range(repeat.get(name, 1))
    ]
    return [name for _, _, name in sorted(visits)]


@dataclass(frozen=True)
class PhaseState:
    """The position of an iteration in the schedule.

    Attributes:
        phase: the phase that runs.
        cycle: 0-based index of the cycle.
        pass_index: 0-based index of the pass in the cycle.
        step: 0-based index of the step in the pass.
        steps: number of steps of the pass.
    """

    phase: Phase
    cycle: int
    pass_index: int
    step: int
    steps: int

    @property
    def first(self) -> bool:
        """Whether this is the first step of the pass."""
        return self.step == 0

    @property
    def last(self) -> bool:
        """Whether this is the last step of the pass."""
        return self.step == self.steps - 1


@dataclass(frozen=True)
class Cycle:
    """The passes of one cycle, in order.

    Attributes:
        phases: phase of each pass.
        steps: number of steps of each pass.
        starts: first iteration of each pass, relative to the cycle; finally the length of the cycle.
    """

    phases: tuple[Phase, ...]
    steps: tuple[int, ...]
    starts: tuple[int, ...]


class PhaseSchedule:
    """Maps an iteration to its PhaseState; a pure function, so resuming needs only the iteration.

    All cycles have the same passes and hence the same length; only their order differs if it is shuffled.

    Attributes:
        phases: passes of the first cycle.
        steps: number of steps of each.
        cycles: number of cycles.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        steps: Sequence[int],
        cycles: int,
        *,
        repeat: Mapping[str, int] | None = None,
        shuffle: int | None = None,
    ) -> None:
        """See `build_schedule`.

        Args:
            phases: one visit of each dataset.
            steps: number of steps of each pass.
            cycles: number of cycles.
            repeat: visits per cycle of datasets with more than one; see `spread_visits`.
            shuffle: seed for a new random order of the datasets in each cycle; None: keep the given order.
        """
        if len(phases) != len(steps) or min(steps, default=0) < 1 or cycles < 1:
            raise ValueError("a schedule needs at least one pass, one step per pass and one cycle")
        self.cycles, self._repeat, self._shuffle = cycles, dict(repeat or {}), shuffle
        self._visits: dict[str, list[tuple[Phase, int]]] = {phase.dataset: [] for phase in phases}
        for phase, count in zip(phases, steps, strict=True):
            self._visits[phase.dataset].append((phase, count))
        self._set_first_cycle()

    def _set_first_cycle(self) -> None:
        first = self._ordered(0)
        self._known = (0, first)
        self.phases, self.steps, self._length = first.phases, first.steps, first.starts[-1]

    def take_seed(self, seed: int) -> None:
        """Use the seed of a resumed run for the order of cycles; no effect unless they are shuffled."""
        if self._shuffle is not None:
            self._shuffle = seed
            self._set_first_cycle()

    @property
    def cycle_length(self) -> int:
        """Number of iterations per cycle."""
        return self._length

    @property
    def total(self) -> int:
        """Total number of iterations."""
        return self.cycle_length * self.cycles

    def cycle(self, number: int) -> Cycle:
        """The passes of the cycle with this 0-based index."""
        if self._shuffle is None:
            number = 0
        if self._known[0] != number:
            self._known = (number, self._ordered(number))
        return self._known[1]

    def at(self, iteration: int) -> PhaseState:
        """The state of a 0-based iteration; also defined beyond `total`, where cycles continue."""
        number, offset = divmod(iteration, self.cycle_length)
        cycle = self.cycle(number)
        index = bisect_right(cycle.starts, offset) - 1
        return PhaseState(cycle.phases[index], number, index, offset - cycle.starts[index], cycle.steps[index])

    def _ordered(self, number: int) -> Cycle:
        names = list(self._visits)
        if self._shuffle is not None:
            # The spawn key makes this stream independent of those for images and augmentation with the same seed.
            seed = np.random.SeedSequence((self._shuffle, number), spawn_key=(0,))
            names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        passes = [one for name in spread_visits(names, self._repeat) for one in self._visits[name]]
        steps = tuple(count for _, count in passes)
        return Cycle(tuple(phase for phase, _ in passes), steps, (0, *accumulate(steps)))
