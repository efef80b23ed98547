"""The training schedule as pure data: which phase runs at which iteration."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fx_d2.structures import COMPONENTS, TASK_COMPONENTS, DatasetSpec, FXError, Phase


def build_cycle(specs: Sequence[DatasetSpec], strategy: Sequence[Mapping[str, Any]]) -> tuple[Phase, ...]:
    """The passes of one cycle: every dataset in order, and for each the strategy's rows of its tasks in order.

    Args:
        specs: rows of the table; the paper's eleven give 20 (dataset, task) slots and 29 passes.
        strategy: rows {"task", "share", "train"} as `config.PAPER_STRATEGY`.

    Raises:
        FXError: a row is not understood, or no row fits any dataset.
    """
    for row in strategy:
        _check_row(row)
    phases = tuple(
        Phase(spec.name, row["task"], tuple(row["train"]), float(row["share"]))
        for spec in specs
        for row in strategy
        if row["task"] in spec.tasks
    )
    if not phases:
        raise FXError("SCHEDULE.STRATEGY names no task that a dataset of DATASETS.TRAIN has")
    return phases


def _check_row(row: Mapping[str, Any]) -> None:
    where = f"SCHEDULE.STRATEGY row {dict(row)}"
    if set(row) != {"task", "share", "train"}:
        raise FXError(f"{where}: a row has exactly the keys task, share, train")
    if row["task"] not in TASK_COMPONENTS:
        raise FXError(f"{where}: task must be one of {sorted(TASK_COMPONENTS)}")
    allowed = TASK_COMPONENTS[row["task"]]
    strange = [c for c in row["train"] if c not in allowed]
    if strange or not row["train"]:
        raise FXError(f"{where}: train must name some of {list(allowed)} (of all components {list(COMPONENTS)})")
    if not 0 < row["share"] <= 1:
        raise FXError(f"{where}: share must be in (0, 1]")


@dataclass(frozen=True)
class PhaseState:
    """Where an iteration stands.

    Attributes:
        phase: what runs.
        cycle: 0-based.
        pass_index: 0-based position of the pass in the cycle.
        step: 0-based step in the pass.
        steps: steps of the pass.
    """

    phase: Phase
    cycle: int
    pass_index: int
    step: int
    steps: int

    @property
    def first(self) -> bool:
        """Whether the pass begins here."""
        return self.step == 0

    @property
    def last(self) -> bool:
        """Whether the pass ends here."""
        return self.step == self.steps - 1


class PhaseSchedule:
    """Maps an iteration to its PhaseState; pure, so that resuming needs only the iteration.

    Args:
        phases: one cycle.
        steps: steps of each pass.
        cycles: number of cycles.
    """

    def __init__(self, phases: Sequence[Phase], steps: Sequence[int], cycles: int) -> None:
        if len(phases) != len(steps) or min(steps, default=0) < 1 or cycles < 1:
            raise ValueError("a schedule needs at least one pass, one step per pass and one cycle")
        self.phases, self.steps, self.cycles = tuple(phases), tuple(steps), cycles
        self._starts = (0, *accumulate(self.steps))

    @property
    def cycle_length(self) -> int:
        """Iterations in one cycle."""
        return self._starts[-1]

    @property
    def total(self) -> int:
        """Iterations in all."""
        return self.cycle_length * self.cycles

    def at(self, iteration: int) -> PhaseState:
        """State of a 0-based iteration; defined beyond `total` too, where the cycle simply goes on."""
        cycle, offset = divmod(iteration, self.cycle_length)
        index = bisect_right(self._starts, offset) - 1
        return PhaseState(self.phases[index], cycle, index, offset - self._starts[index], self.steps[index])
