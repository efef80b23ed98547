"""The benchmark command: its report, and how ratios are made."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/benchmark.py as a module."""
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("benchmark", TOOLS / "benchmark.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_data(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A small run prints the three tables with their rows."""
    assert benchmark.main(["data", "--num", "1", "--side", "300", "--repetitions", "1"]) == 0
    report = capsys.readouterr().out
    assert report.count("PIL + torchvision") == 3 and report.count("cache of 256") == 2 and "area 0.08" in report


def test_attention(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A small run prints the four tables, or says that there is no compiler."""
    status = benchmark.main(["attention", "--side", "64", "--batch", "1", "--repetitions", "1"])
    captured = capsys.readouterr()
    if status:
        assert captured.err.startswith("error: ") and "deformable_cpu.cpp" in captured.err
        return
    assert captured.out.count("\nC++ ") == 4 and captured.out.count("forward and backward") == 2


def test_empty_folder(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["data", "--images", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --images {tmp_path}: no *.png there\n"


def test_ratios(benchmark: ModuleType) -> None:
    """Ratios are taken within a repetition; everybody is called once in each and once before."""
    from benchmarks.timing import ratio_table, take_turns

    table = ratio_table({"old": [4.0, 8.0, 4.0], "new": [2.0, 2.0, 1.0]}, "old", 8).splitlines()
    assert table[1].split() == ["old", "2.0", "1.00", "1.00", "..", "1.00"]
    assert table[2].split() == ["new", "4.0", "4.00", "2.00", "..", "4.00"]
    calls: list[tuple[str, int]] = []
    times = take_turns({name: lambda n, name=name: calls.append((name, n)) for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [len(seconds) for seconds in times.values()] == [2, 2]


def test_criterion(benchmark: ModuleType) -> None:
    """Both ways of writing the criterion find the same pairs, loss and gradients, and a small run prints two tables."""
    from benchmarks import criterion

    torch.manual_seed(0)
    problem = criterion.draw(batch=3, boxes=2, queries=9, pairs=5, dtype=torch.float64)
    assert problem.noised.groups == 2
    out, found = problem.out, []
    leaves = (out.logits, out.boxes, out.proposal_logits, out.proposal_boxes)
    for make in (criterion.criterion, criterion.plain_criterion):
        loss = make(problem)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    assert all(x.abs().max() > 0 for x in found[0])
    parser = argparse.ArgumentParser()
    criterion.add_arguments(parser)
    small = "--batch 2 --boxes 1 --queries 5 --pairs 2 --repetitions 1".split()
    assert criterion.run(parser.parse_args(small)).count("\nfx_d2 ") == 2
