"""The benchmark command: its reports, and how ratios are made."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.config import get_cfg
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from fx_d2.structures import FXError

TOOLS = Path(__file__).resolve().parents[2] / "tools"
KINDS = ["cls/release", "loc/lock", "loc/release", "seg/lock", "seg/release"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/benchmark.py as a module."""
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("benchmark", TOOLS / "benchmark.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_cells(benchmark: ModuleType, folder: Path, *words: str) -> list[list[str]]:
    """Of each table of a small run's report the cells of the first column."""
    report = folder / "report.json"
    assert benchmark.main([words[0], "--quick", "--output", str(report), *words[1:]]) == 0
    content = json.loads(report.read_text())
    assert content["environment"]["allocator"] and set(content["sections"]) == {words[0]}
    return [[row[0] for row in table["rows"]] for table in content["sections"][words[0]]]


SECTIONS = {
    "step": [KINDS, [*KINDS, "cycle, published images", "cycle, equal datasets"]],
    "lock": [["loc", "seg"] * 2],
    "memory": [["loc/lock"] * 4],
    "inference": [["cls", "loc", "seg", "cls+loc", "cls+seg", "loc+seg", "cls+loc+seg"]],
    "update": [["teacher update"] * 3 + ["optimizer step"] * 4 + ["gradient clipping"] * 3],
    "wait": [["as they are", "cache of 256"]],
    "evaluation": [["pycocotools", "fx_d2"], ["1", "5 (the config's)", "10"]],
    "startup": [["first", "again"]],
    "checkpoint": [["reference-style", "fx_d2"], ["student", "teacher", "first moments", "second moments"]],
    "compile": [KINDS],
    "precision": [["cls", "cls", "loc", "loc", "seg", "seg"]],
}


@pytest.mark.parametrize("section", SECTIONS)
def test_section(benchmark: ModuleType, tmp_path: Path, section: str) -> None:
    """Each section's tables have their rows."""
    words = ("--backend", "aot_eager") if section == "compile" else ()
    assert first_cells(benchmark, tmp_path, section, *words) == SECTIONS[section]
    assert (tmp_path / "precision.png").is_file() == (section == "precision")


def test_profile_writes_a_trace(benchmark: ModuleType, tmp_path: Path) -> None:
    (cells,) = first_cells(benchmark, tmp_path, "profile", "--kind", "cls/release", "--top", "3")
    assert len(cells) == 4 and cells[-1] == "all"
    assert json.loads((tmp_path / "trace_fx_d2_cls_release.json").read_text())["traceEvents"]


def test_profile_counts_a_kernel_s_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    profiling = importlib.import_module("benchmarks.profiling")
    events = [
        FunctionEvent(0, "mm", 0, 0, 9, use_device="cuda", stack=()),
        FunctionEvent(0, "gemm", 0, 9, 14, device_type=DeviceType.CUDA, use_device="cuda", stack=()),
    ]
    events[0].append_kernel("gemm", 0, 5.0)
    every = EventList(events, use_device="cuda")
    every._build_tree()
    found = {event.key: event.self_device_time_total for event in every.key_averages()}
    assert found == {"mm": 5.0, "gemm": 5.0}
    assert [event.key for event in profiling.operators(every.key_averages())] == ["mm"]


def test_data(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A small run prints the three tables with their rows."""
    assert benchmark.main(["data", "--num", "1", "--side", "300", "--repeat", "1"]) == 0
    report = capsys.readouterr().out
    assert report.count("PIL + torchvision") == 3 and report.count("cache of 256") == 2 and "area 0.08" in report


def test_attention(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A small run prints the four tables, or says that there is no compiler."""
    status = benchmark.main(["attention", "--quick", "--batch", "1"])
    captured = capsys.readouterr()
    if status:
        assert captured.err.startswith("error: ") and "deformable_cpu.cpp" in captured.err
        return
    assert captured.out.count("\n| C++ ") == 4 and captured.out.count("forward and backward") == 2


def test_attention_is_compared_before_it_is_timed(benchmark: ModuleType) -> None:
    attention = importlib.import_module("benchmarks.attention")
    shapes = [(4, 4), (2, 2), (1, 1), (1, 1)]
    inputs = attention.draw(shapes, 1, 3, False, "cpu")
    right = attention.sample_and_sum
    assert attention.difference({"torch": right, "again": right}, shapes, inputs) == 0
    with pytest.raises(FXError, match="torch and wrong disagree"):
        attention.difference({"torch": right, "wrong": lambda *given: 1.1 * right(*given)}, shapes, inputs)


def test_empty_folder(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["data", "--images", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --images {tmp_path}: contains no *.png\n"


def test_all_gives_every_section_the_common_options(benchmark: ModuleType) -> None:
    chosen = benchmark.parse_args(["all", "--quick", "--batch", "3"])
    assert [args.section for args in chosen] == list(benchmark.SECTIONS)
    assert all(args.quick and args.batch == 3 for args in chosen)


def test_markdown_report(benchmark: ModuleType, tmp_path: Path) -> None:
    """A Markdown file has the environment and the section; its tables can be read back."""
    from benchmarks.report import markdown_table, tables_of, write_report

    table = markdown_table(["a", "b"], [["x", "1"], ["y", "2"]])
    write_report(tmp_path / "r.md", {"machine": "m"}, {"one": f"text\n\n{table}"})
    text = (tmp_path / "r.md").read_text()
    assert text.startswith("machine: m.\n\n### one\n\ntext\n\n| a ")
    assert tables_of(text) == [{"columns": ["a", "b"], "rows": [["x", "1"], ["y", "2"]]}]


def test_ratios(benchmark: ModuleType) -> None:
    """Ratios are taken within a repetition; everybody is called once in each and once before."""
    from benchmarks.report import tables_of
    from benchmarks.timing import ratio_table, take_turns

    (table,) = tables_of(ratio_table({"old": [4.0, 8.0, 4.0], "new": [2.0, 2.0, 1.0]}, "old", 8))
    assert table["rows"] == [["old", "2.0", "1.00 (1.00 .. 1.00)"], ["new", "4.0", "4.00 (2.00 .. 4.00)"]]
    calls: list[tuple[str, int]] = []
    times = take_turns({name: lambda n, name=name: calls.append((name, n)) for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [len(seconds) for seconds in times.values()] == [2, 2]


def test_cycle_weights(benchmark: ModuleType) -> None:
    """Eleven datasets: 11, 6 and 3 of a task; a locked pass sees half of the images."""
    from benchmarks.cycle import cycle_images, equal_slots

    from fx_d2.config import add_fx_config
    from fx_d2.data.table import PRETRAINING

    cfg = get_cfg()
    add_fx_config(cfg)
    schedule = cfg.SCHEDULE
    assert equal_slots(PRETRAINING, schedule) == dict(zip(KINDS, (11, 3, 6, 1.5, 3), strict=True))
    images = cycle_images(PRETRAINING, schedule, 2)
    assert images["cls/release"] == 750_235 and images["loc/release"] == 67_086 and images["seg/release"] == 34_309
    schedule.REPEAT["chestx_det"] = 3
    assert equal_slots(PRETRAINING, schedule) == dict(zip(KINDS, (13, 4, 8, 2.5, 5), strict=True))
    schedule.STRATEGY = [{"task": "cls", "share": 1.0, "train": ["cls_heads"], "steps": 5}]
    assert cycle_images(PRETRAINING, schedule, 2) == {"cls/lock": 13 * 5 * 2}


def test_criterion(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
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
    small = "criterion --batch 2 --boxes 1 --queries 5 --pairs 2 --repeat 1".split()
    assert benchmark.main(small) == 0
    assert capsys.readouterr().out.count("\n| fx_d2 ") == 2
