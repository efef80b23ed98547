import pytest
from hypothesis import given
from hypothesis import strategies as st

from fx_d2.engine.clock import RunClock, StepTimes, due_passes
from fx_d2.engine.schedule import PhaseSchedule
from fx_d2.structures import Phase

LOCKED, RELEASED = Phase("a", "loc", ("loc_decoders",)), Phase("a", "loc", ("backbone", "loc_decoders"))


def test_the_first_step_of_a_kind_counts_only_alone() -> None:
    times = StepTimes()
    assert times.mean("x") == 0
    times.add("x", 9.0)
    assert (times.mean("x"), times.mean("y")) == (9.0, 9.0)
    times.add("x", 1.0)
    times.add("x", 2.0)
    assert times.mean("x") == 1.5
    times.add("z", 7.0)
    assert times.mean("z") == 7.0
    assert times.mean("y") == 1.5


numbers = st.integers(0, 200)


@given(numbers, numbers, st.integers(0, 12), st.integers(0, 12))
def test_due_passes_counts_multiples(first: int, count: int, every: int, other: int) -> None:
    def due(number: int) -> bool:
        return any(step > 0 and number % step == 0 for step in (every, other))

    assert due_passes(first, first + count, every, other) == sum(map(due, range(first + 1, first + count + 1)))


def _clock(eval_passes: int = 0, eval_cycles: int = 0, at_end: bool = False) -> RunClock:
    return RunClock(eval_passes=eval_passes, eval_cycles=eval_cycles, at_end=at_end)


def test_time_left_goes_by_the_kind_of_pass() -> None:
    schedule = PhaseSchedule([LOCKED, RELEASED], [2, 3], cycles=2)
    clock = _clock()
    for _ in range(2):
        clock.step(LOCKED.kind, 1.0)
    left = clock.left(schedule, 2, 2.0)
    assert (left.in_pass, left.in_cycle, left.in_run) == (0.0, 3.0, 8.0)  # of the other kind nothing is known yet
    for _ in range(2):
        clock.step(RELEASED.kind, 10.0)
    left = clock.left(schedule, 4, 22.0)
    assert (left.in_pass, left.in_cycle, left.in_run) == (10.0, 10.0, 42.0)
    # Two seconds that were neither steps nor evaluations: half a second a step.
    assert clock.left(schedule, 4, 24.0).in_run == pytest.approx(42.0 + 6 * 0.5)


def test_evaluations_count_once_one_was_measured() -> None:
    schedule = PhaseSchedule([LOCKED, RELEASED], [1, 1], cycles=3)
    clock = _clock(eval_passes=1, at_end=True)
    clock.step(LOCKED.kind, 1.0)
    clock.step(RELEASED.kind, 1.0)
    assert clock.left(schedule, 2, 2.0).in_run == 4.0
    clock.evaluation(100.0)
    # After the first pass: its own evaluation, those after passes 2 to 5, and the last one.
    assert clock.left(schedule, 1, 102.0).in_run == 5.0 + 600.0
    assert clock.left(schedule, 1, 102.0).in_cycle == 1.0 + 200.0
    assert clock.left(schedule, 6, 102.0).in_run == 100.0
    assert clock.left(schedule, 6, 102.0).in_cycle == 0.0


def test_shuffled_cycles_are_counted_in_their_own_order() -> None:
    phases = [Phase(name, "cls", (part,)) for name, part in zip("abcdef", ["backbone", "cls_heads"] * 3, strict=True)]
    schedule = PhaseSchedule(phases, [1] * 6, cycles=4, shuffle=0)
    clock = _clock()
    for phase, seconds in zip(phases[:2], (1.0, 10.0), strict=True):
        clock.step(phase.kind, seconds)
        clock.step(phase.kind, seconds)
    for done in range(1, schedule.total + 1):
        rest = [schedule.at(i) for i in range(done, schedule.total)]
        now = [s for s in rest if s.cycle == schedule.at(done - 1).cycle]
        seconds = [
            sum({"backbone": 1.0, "cls_heads": 10.0}[s.phase.trainable[0]] for s in part) for part in (now, rest)
        ]
        left = clock.left(schedule, done, 22.0)
        assert [left.in_cycle, left.in_run] == seconds
