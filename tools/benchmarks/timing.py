"""Fair timing: candidates take turns, and what is reported are ratios with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.report import markdown_table

Clock = Callable[[], float]


def wall_clock(device: str = "cpu") -> Clock:
    """Seconds by the clock on the wall; on a GPU once everything that was asked of it is done."""
    if not device.startswith("cuda"):
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def take_turns(
    candidates: Mapping[str, Callable[[int], object]], repetitions: int, clock: Clock = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each call of each candidate, by default CPU seconds of this process, all its threads together.

    Every repetition calls all candidates once, so that a disturbance of the machine meets all of them; the first round
    warms up and is not counted. CPU seconds, unlike wall seconds, do not count other programs' turns, but neither do
    they see threads that wait for each other.

    Args:
        candidates: functions of the number of the repetition, by name.
        repetitions: rounds that count, at least 1.
        clock: what is read before and after a call.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(-1, repetitions):
        for name, call in candidates.items():
            start = clock()
            call(max(repetition, 0))
            if repetition >= 0:
                times[name].append(clock() - start)
    return times


def ratios(times: Mapping[str, Sequence[float]], baseline: str, name: str) -> list[float]:
    """How many times as fast as the baseline a candidate is, in each repetition, in order of size."""
    return sorted(base / own for base, own in zip(times[baseline], times[name], strict=True))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and, where there are several values, the smallest and the largest: "2.10 (1.95 .. 2.31)"."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def ratio_table(times: Mapping[str, Sequence[float]], baseline: str, items: int) -> str:
    """A Markdown table: items a second of each candidate, and how many times as fast as the baseline it is.

    The ratio is the median over the repetitions, taken within each repetition, with the smallest and the largest.

    Args:
        times: seconds by candidate, equally many for each.
        baseline: the candidate to compare with.
        items: work done in a repetition, such as images.
    """
    rows = [
        [name, f"{items / statistics.median(seconds):.1f}", spread(ratios(times, baseline, name))]
        for name, seconds in times.items()
    ]
    return markdown_table(["", "items/s", "ratio"], rows)
