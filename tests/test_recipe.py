"""The table of deviations names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fx_d2.config import add_fx_config

ROOT = Path(__file__).resolve().parents[1]
RECIPE = (ROOT / "projects" / "FoundationX" / "RECIPE.md").read_text()
ROWS = [line for line in RECIPE[RECIPE.index("## Where we differ") :].splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" | ")[0].strip("| "))
def test_a_deviation_names_its_tests_and_keys(row: str) -> None:
    from detectron2.config import get_cfg

    what, _, _, why, keys, tests = (cell.strip() for cell in row.strip("|").split(" | "))
    assert what and why
    named = re.findall(r"`(tests/[^`:]+)(?:::(\w+))?`", tests)
    assert named, "no test is named"
    for file, function in named:
        assert f"def {function}(" in (ROOT / file).read_text() if function else (ROOT / file).is_file()
    cfg = get_cfg()
    add_fx_config(cfg)
    first = ""
    for key in re.findall(r"`([A-Z.]?[A-Z._]+)`", keys):
        # ".KEY" continues the key before.
        first = first.rpartition(".")[0] + key if key.startswith(".") else key
        node = cfg
        for part in first.split("."):
            if node is cfg.MODEL.TIMM.KWARGS:
                break
            assert part in node, first
            node = node[part]
