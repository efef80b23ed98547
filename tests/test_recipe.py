"""The recipe's numbers are the configs', and the table of deviations names tests that are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

from fx_d2.config import add_fx_config

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "projects" / "FoundationX"
RECIPE = (PROJECT / "RECIPE.md").read_text()
VALUES, _, DEVIATIONS = RECIPE.partition("## Where we differ")
ROWS = [line for line in DEVIATIONS.splitlines() if line.startswith("| ") and not line.startswith("| what |")]
VALUE_ROWS = [line for line in VALUES.splitlines() if line.startswith("| ") and re.search(r"`[A-Z]+\.", line)]
CONFIG_OF = {
    "baseline": "baseline/cls.yaml",
    "organs": "organs/vindr_organs.yaml",
    "fine-tuning": "finetune/full.yaml",
    "head-only": "finetune/cls_head_only.yaml",
    "small segmentation datasets": "finetune/seg.yaml",
    "few-shot": "fewshot/jsrt_clavicles.yaml",
    "Foundation X+": "pretrain/foundation_x_plus.yaml",
}
"""The config that a row speaks of, by what stands before its colon; others: the recipe of pretraining."""


def load(name: str) -> CfgNode:
    """A config below projects/FoundationX/configs."""
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.merge_from_file(str(PROJECT / "configs" / name))
    return cfg


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of a config with their keys."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from leaves(below, path)
    else:
        yield path, value


@pytest.mark.parametrize("row", VALUE_ROWS, ids=lambda row: row.split(" | ")[0].strip("| "))
def test_a_value_of_the_recipe_is_the_config_s(row: str) -> None:
    """Every number that a row's keys have in the config stands in the row."""
    what, text, keys, _ = (cell.strip() for cell in row.strip("|").split(" | "))
    cfg = load(CONFIG_OF.get(what.partition(":")[0], "pretrain/swin_b_cyclic.yaml"))
    stated = {float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", text)}
    stated |= {0.0} if re.search(r"\bnone\b", text) else set()
    first = ""
    for key in re.findall(r"`([A-Z_.*]+)`", keys):
        first = first.rpartition(".")[0] + key if key.startswith(".") else key
        found = [(path, value) for path, value in leaves(cfg) if fnmatch(path, first) or path.startswith(f"{first}.")]
        assert found, first
        for path, value in found:
            if type(value) in (int, float):
                # Rates of components are factors, grey values in 0..255.
                unit = cfg.SOLVER.BASE_LR if ".LR_FACTOR." in path else 1 / 255 if ".PIXEL_" in path else 1
                assert any(value * unit == pytest.approx(number) for number in stated), (path, value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" | ")[0].strip("| "))
def test_a_deviation_names_its_tests_and_keys(row: str) -> None:
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
