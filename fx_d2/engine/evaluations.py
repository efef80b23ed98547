"""The log of a run's evaluations, one line each: the data behind curves over passes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fx_d2.engine.schedule import PhaseState
from fx_d2.files import write_atomic

FILE_NAME = "evaluations.jsonl"


class EvaluationLog:
    """<folder>/evaluations.jsonl, used by the main process only.

    Each line is {"iteration" (completed steps), "cycle", "pass" (both 0-based), "dataset", "task", "mode" (of the pass
    that has just ended), "metrics": {"student/<dataset>/<task>/<metric>": value or null}}. metrics.json contains them
    too, among the step metrics and without undefined values.
    """

    def __init__(self, folder: Path) -> None:
        """folder: the run's OUTPUT_DIR."""
        self._path = folder / FILE_NAME

    def add(self, done: int, state: PhaseState, metrics: Mapping[str, float]) -> None:
        """Append the evaluation after `done` steps; `state` is that of the last step."""
        phase = state.phase
        line = {
            "iteration": done,
            "cycle": state.cycle,
            "pass": state.pass_index,
            "dataset": phase.dataset,
            "task": phase.task,
            "mode": phase.mode,
            "metrics": {key: None if math.isnan(value) else value for key, value in metrics.items()},
        }
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")

    def rewind(self, done: int) -> None:
        """Drop evaluations after `done` steps, which a resumed run repeats, and a line truncated by a kill."""
        keep_lines(self._path, lambda line: line["iteration"] <= done)


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Keep only the complete lines of a JSON lines file that `wanted` accepts; a missing file is ignored."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and wanted(json.loads(line))]
    if len(kept) < len(lines):
        write_atomic(path, "".join(kept))
