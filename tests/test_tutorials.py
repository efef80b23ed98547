"""The tutorials' commands, run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script(text: str) -> str:
    """All blocks of a page as one bash script; python blocks are one session, as a reader would have it."""
    lines, session = ["set -e"], ""
    for kind, code in BLOCK.findall(text):
        if kind == "bash":
            lines.append(code)
            continue
        # What earlier blocks made is there, but is not made twice: their files are kept.
        lines.append(f"python - <<'END_OF_PYTHON'\n{session}{code}END_OF_PYTHON")
        session += "".join(f"{line}\n" for line in code.splitlines() if re.match(r"(import|from|folder =)", line))
    return "\n".join(lines)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_every_command_runs(page: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "WORK": str(tmp_path / "work"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        ["bash", "-c", script(page.read_text())],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for wanted in (
        "0 problems",
        "| My X-rays",
        "labels: {'nodule': ",
        "mask pixels: ",
        "label Mass ",
        "split mine_train",
    ):
        assert wanted in done.stdout, wanted
    assert len(list((tmp_path / "work" / "sheets").glob("*.png"))) == 3
    metrics = json.loads((tmp_path / "work" / "eval" / "results.json").read_text())["metrics"]
    for metric, least in (("cls/auroc", 0.9), ("loc/AP40", 0.7), ("seg/dice", 0.7)):
        assert metrics[f"student/my_xrays/{metric}"] > least, f"the page promises more of {metric}"
