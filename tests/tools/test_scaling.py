"""docs/performance.md says what tools/benchmarks/scaling.py computes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_says_what_the_script_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample, since all kinds take a minute: the locked segmentation step, and the rate that follows."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    scaling = importlib.import_module("benchmarks.scaling")
    report = importlib.import_module("benchmarks.report")
    written = scaling.DOCUMENT.read_text(encoding="utf-8").split(scaling.BEGIN)[1].split(scaling.END)[0]
    costs, bounds, hours = report.tables_of(written)
    (cost,) = scaling.step_costs(scaling.config(), ["seg/lock"]).values()
    assert scaling.cost_row("seg/lock", cost) in costs["rows"], "run tools/benchmarks/scaling.py --write"
    rate = f"{scaling.BATCH / max(cost.seconds('H100').values()):,.0f}"
    assert ["seg/lock", "H100", rate] in [[row[0], row[1], row[-1]] for row in bounds["rows"]]
    assert len(costs["rows"]) == 5 and len(bounds["rows"]) == 10 and len(hours["rows"]) == 6
