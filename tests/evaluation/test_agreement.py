"""The table of docs/results.md can be made again."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_agreement() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tests" / "evaluation" / "agreement.py"), "--cases", "8"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    header, *found = rows(done.stdout)
    assert header == ["metric", "against", "cases", "largest difference"] and len(found) == 9
    assert all(float(row[3]) < 1e-12 for row in found), done.stdout
    told = rows((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    for row in found:
        [line] = [line for line in told if line[:2] == row[:2]]
        assert float(line[3]) < 1e-12, line
