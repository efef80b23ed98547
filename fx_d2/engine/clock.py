"""Estimates of the remaining time of a run, from the times measured so far."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from fx_d2.engine.schedule import PhaseSchedule


@dataclass(frozen=True)
class Left:
    """Estimated seconds left in the pass, in the cycle and in the run."""

    in_pass: float
    in_cycle: float
    in_run: float


class StepTimes:
    """Mean seconds per step for each kind of phase: steps of a locked pass are several times faster than released ones.

    The first step of a kind is a warm-up and ignored as soon as there is another.
    """

    def __init__(self) -> None:
        self._first: dict[Hashable, float] = {}
        self._others: dict[Hashable, tuple[int, float]] = {}

    def add(self, kind: Hashable, seconds: float) -> None:
        """Record a step."""
        if kind in self._first:
            count, total = self._others.get(kind, (0, 0.0))
            self._others[kind] = count + 1, total + seconds
        else:
            self._first[kind] = seconds

    def mean(self, kind: Hashable) -> float:
        """Mean seconds per step of the kind; over all kinds if it has none yet; 0 before the first step."""
        if kind in self._others:
            count, total = self._others[kind]
            return total / count
        if kind in self._first:
            return self._first[kind]
        known = self._others or {kind: (1, seconds) for kind, seconds in self._first.items()}
        steps = sum(count for count, _ in known.values())
        return sum(total for _, total in known.values()) / steps if steps else 0.0


def due_passes(first: int, last: int, every: int, every_other: int) -> int:
    """Count the multiples of `every` or `every_other` in first + 1 .. last; a period of 0 has none."""

    def multiples(step: int) -> int:
        return last // step - first // step if step > 0 else 0

    both = math.lcm(every, every_other) if every > 0 and every_other > 0 else 0
    return multiples(every) + multiples(every_other) - multiples(both)


class RunClock:
    """Estimates the time left from step times by kind, the mean evaluation time, and overhead (saving) per step."""

    def __init__(self, *, eval_passes: int, eval_cycles: int, at_end: bool) -> None:
        """Start without measurements.

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
        """Record the duration of a step."""
        self._times.add(kind, seconds)
        self._steps, self._step_seconds = self._steps + 1, self._step_seconds + seconds

    def evaluation(self, seconds: float) -> None:
        """Record the duration of an evaluation."""
        self._evaluations, self._evaluation_seconds = self._evaluations + 1, self._evaluation_seconds + seconds

    def left(self, schedule: PhaseSchedule, done: int, elapsed: float) -> Left:
        """The time left after `done` iterations of the run; evaluations count only once one has been measured.

        Args:
            schedule: of the run.
            done: completed iterations, at least 1.
            elapsed: seconds since this process started training.
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
        # The evaluation after a pass that has just ended is still to come; that of the last pass is the final one.
        ended, last = state.cycle * passes + state.pass_index, schedule.cycles * passes - 1
        to_cycle = due_passes(ended, min((state.cycle + 1) * passes, last), *every)
        to_end = due_passes(ended, last, *every) + self._at_end
        return Left(in_pass, in_cycle + mean * to_cycle, in_run + mean * to_end)
