"""Fair timing: candidates take turns, and ratios are reported with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.report import markdown_table

Clock = Callable[[], float]


def wall_clock(device: str = "cpu") -> Clock:
    """Wall-clock seconds; on a GPU after synchronising with it."""
    if not device.startswith("cuda"):
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def take_turns(
    candidates: Mapping[str, Callable[[int], object]], repetitions: int, clock: Clock = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each call of each candidate; by default CPU seconds of this process, summed over its threads.

    Every repetition calls all candidates once, so disturbances of the machine affect all of them; the first round is a
    warm-up and not counted. CPU seconds, unlike wall-clock seconds, exclude other programs, but also the time in which
    threads wait for each other.

    Args:
        candidates: name -> function of the repetition's index.
        repetitions: counted rounds, at least 1.
        clock: read before and after each call.
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
    """Speed-up of a candidate over the baseline in each repetition, sorted."""
    return sorted(base / own for base, own in zip(times[baseline], times[name], strict=True))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and, for several values, minimum and maximum: "2.10 (1.95 .. 2.31)"."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def ratio_table(times: Mapping[str, Sequence[float]], baseline: str, items: int) -> str:
    """A Markdown table: items per second of each candidate, and its speed-up over the baseline.

    Ratios are taken within each repetition; the table has their median, minimum and maximum.

    Args:
        times: candidate -> seconds, the same number for each.
        baseline: the candidate to compare with.
        items: amount of work per repetition, such as images.
    """
    rows = [
        [name, f"{items / statistics.median(seconds):.1f}", spread(ratios(times, baseline, name))]
        for name, seconds in times.items()
    ]
    return markdown_table(["", "items/s", "ratio"], rows)
