"""A run's evaluations, one line each: what curves over passes are drawn from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fx_d2.engine.schedule import PhaseState

FILE_NAME = "evaluations.jsonl"


class EvaluationLog:
    """<folder>/evaluations.jsonl. Only the main process may use it.

    A line is {"iteration" (steps done), "cycle", "pass" (both from 0), "dataset", "task", "mode" (of the pass that has
    just ended), "metrics": {"student/<dataset>/<task>/<metric>": value or null}}. metrics.json has them too, among
    the numbers of steps, and without what is not defined.
    """

    def __init__(self, folder: Path) -> None:
        """folder: the run's OUTPUT_DIR."""
        self._path = folder / FILE_NAME

    def add(self, done: int, state: PhaseState, metrics: Mapping[str, float]) -> None:
        """Append the evaluation after `done` steps; `state` is that of the last one."""
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
        """Forget evaluations after `done` steps, which a resumed run makes again, and a line cut off by a kill."""
        keep_lines(self._path, lambda line: line["iteration"] <= done)


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Leave in a file of JSON lines, if it is there, those that are wanted and whole."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and wanted(json.loads(line))]
    if len(kept) < len(lines):
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)
