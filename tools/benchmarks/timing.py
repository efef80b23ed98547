"""Fair timing: candidates take turns, and what is reported are ratios with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def take_turns(candidates: Mapping[str, Callable[[int], object]], repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of this process, all its threads together, for each call of each candidate.

    Every repetition calls all candidates once, so that a disturbance of the machine meets all of them; the first round
    warms up and is not counted. CPU seconds, unlike wall seconds, do not count other programs' turns.

    Args:
        candidates: functions of the number of the repetition, by name.
        repetitions: rounds that count, at least 1.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(-1, repetitions):
        for name, call in candidates.items():
            start = time.process_time()
            call(max(repetition, 0))
            if repetition >= 0:
                times[name].append(time.process_time() - start)
    return times


def ratio_table(times: Mapping[str, Sequence[float]], baseline: str, items: int) -> str:
    """A text table: items a second of each candidate, and how many times as fast as the baseline it is.

    The ratio is the median over the repetitions, taken within each repetition; the spread is from the first to the
    third quartile of those ratios.

    Args:
        times: seconds by candidate, equally many for each.
        baseline: the candidate to compare with.
        items: work done in a repetition, such as images.
    """
    width = max(map(len, times))
    lines = [f"{'':{width}}  {'items/s':>9}  {'ratio':>6}  spread"]
    for name, seconds in times.items():
        ratios = sorted(base / own for base, own in zip(times[baseline], seconds, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        rate = items / statistics.median(seconds)
        lines.append(f"{name:{width}}  {rate:9.1f}  {statistics.median(ratios):6.2f}  {low:.2f} .. {high:.2f}")
    return "\n".join(lines)
