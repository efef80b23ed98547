"""tools/analyze_model.py, and the documentation that quotes it."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("analyze_model")


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    """(trunk, component) -> the other cells."""
    tables = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| ")
    return {(first, second): rest for first, second, *rest in tables if rest and rest[0][0].isdigit()}


def test_the_documentation_says_what_the_command_says(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--backbones", tool.BACKBONES[0], "--sizes", "224"]) == 0
    said = rows(capsys.readouterr().out)
    written = rows((ROOT / "docs" / "model.md").read_text(encoding="utf-8"))
    assert len(said) == 7 and len(written) == 28
    for key, cells in said.items():
        assert written[key][:2] == cells, f"docs/model.md: run tools/analyze_model.py again for {key}"


def test_sums_and_overrides(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    opts = ["--opts", "MODEL.LOC.STAGES", "[2,3,4]", "MODEL.LOC.ENC_LAYERS", "1", "MODEL.LOC.DEC_LAYERS", "1"]
    assert tool.main(["--backbones", "resnet10t", "--sizes", "64", "96", *opts]) == 0
    out = capsys.readouterr().out
    found = rows(out)
    for column in range(3):
        values = [float(cells[column].replace(",", "")) for cells in found.values()]
        assert sum(values[:-1]) == pytest.approx(values[-1], abs=0.004)
    assert len(found) == 7
    assert "Not counted: " in out and "`max_pool2d_with_indices`" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "nih"], "--dataset nih: not a row of the dataset table"),
        (["--dataset", "chexpert"], "has only ['cls']"),
        (["--backbones", "swin_huge"], "is not a timm model"),
        (["--sizes", "225"], "225 x 225 pixels: swin_tiny"),
    ],
)
def test_wrong_input_is_one_line(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert tool.main(words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
