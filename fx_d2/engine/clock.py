"""How long a run will still take, from what it has taken so far."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from fx_d2.engine.schedule import PhaseSchedule


@dataclass(frozen=True)
class Left:
    """Seconds left of the pass, of the cycle and of the run."""

    in_pass: float
    in_cycle: float
    in_run: float


class StepTimes:
    """Mean seconds of a step, apart for each kind of phase: a locked pass is several times as quick as a released one.

    The first step of a kind, which warms it up, does not count once there is another.
    """

    def __init__(self) -> None:
        self._first: dict[Hashable, float] = {}
        self._others: dict[Hashable, tuple[int, float]] = {}

    def add(self, kind: Hashable, seconds: float) -> None:
        """One step more."""
        if kind in self._first:
            count, total = self._others.get(kind, (0, 0.0))
            self._others[kind] = count + 1, total + seconds
        else:
            self._first[kind] = seconds

    def mean(self, kind: Hashable) -> float:
        """Seconds a step of the kind; of all kinds together where it has had none yet; 0 where there was no step."""
        if kind in self._others:
            count, total = self._others[kind]
            return total / count
        if kind in self._first:
            return self._first[kind]
        known = self._others or {kind: (1, seconds) for kind, seconds in self._first.items()}
        steps = sum(count for count, _ in known.values())
        return sum(total for _, total in known.values()) / steps if steps else 0.0


def due_passes(first: int, last: int, every: int, every_other: int) -> int:
    """How many of the numbers first + 1 .. last are multiples of `every` or `every_other`, where these are not 0."""

    def multiples(step: int) -> int:
        return last // step - first // step if step > 0 else 0

    both = math.lcm(every, every_other) if every > 0 and every_other > 0 else 0
    return multiples(every) + multiples(every_other) - multiples(both)


class RunClock:
    """Estimates the time left: steps by their kind, evaluations by their mean, and the rest (saving) by the step."""

    def __init__(self, *, eval_passes: int, eval_cycles: int, at_end: bool) -> None:
        """Nothing measured yet.

        Args:
            eval_passes: TEST.EVAL_PASSES.
            eval_cycles: TEST.EVAL_CYCLES.
            at_end: whether the run ends with an evaluation.
        """
        self._eval_passes, self._eval_cycles, self._at_end = eval_passes, eval_cycles, at_end
        self._times = StepTimes()
        self._steps, self._step_seconds = 0, 0.0
        self._evaluations, self._evaluation_seconds = 0, 0.0

    def step(self, kind: Hashable, seconds: float) -> None:
        """A step took so long."""
        self._times.add(kind, seconds)
        self._steps, self._step_seconds = self._steps + 1, self._step_seconds + seconds

    def evaluation(self, seconds: float) -> None:
        """An evaluation took so long."""
        self._evaluations, self._evaluation_seconds = self._evaluations + 1, self._evaluation_seconds + seconds

    def left(self, schedule: PhaseSchedule, done: int, elapsed: float) -> Left:
        """What is left after `done` iterations of the run.

        Until one has been measured, evaluations count nothing.

        Args:
            schedule: of the run.
            done: at least 1.
            elapsed: seconds since the first step of this command.
        """
        state = schedule.at(done - 1)
        cycle = schedule.cycle(state.cycle)
        other = max(elapsed - self._step_seconds - self._evaluation_seconds, 0.0) / max(self._steps, 1)
        seconds = [(self._times.mean(p.kind) + other) * n for p, n in zip(cycle.phases, cycle.steps, strict=True)]
        in_pass = seconds[state.pass_index] * (state.steps - state.step - 1) / state.steps
        in_cycle = in_pass + sum(seconds[state.pass_index + 1 :])
        in_run = in_cycle + (schedule.cycles - state.cycle - 1) * sum(seconds)
        mean = self._evaluation_seconds / max(self._evaluations, 1)
        passes = len(seconds)
        every = (self._eval_passes, self._eval_cycles * passes)
        # The evaluation that belongs to a pass which has just ended is still to come; the last pass's is that at the
        # end.
        ended, last = state.cycle * passes + state.pass_index, schedule.cycles * passes - 1
        to_cycle = due_passes(ended, min((state.cycle + 1) * passes, last), *every)
        to_end = due_passes(ended, last, *every) + self._at_end
        return Left(in_pass, in_cycle + mean * to_cycle, in_run + mean * to_end)
