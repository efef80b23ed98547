"""tools/report.py on an evaluation of a drawn dataset with known predictions."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch import nn

from fx_d2.data import build_test_loader, file_content_hash, register_datasets
from fx_d2.engine import build_cfg
from fx_d2.evaluation import evaluate_model, write_results
from fx_d2.structures import specs_of

H, W = 40, 50


class Fake(nn.Module):
    """Finds the truth of odd images, and nothing or something else on even ones."""

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = []
        for sample in batch:
            right = bool(sample["image_id"] % 2)
            found = Instances((H, W))
            found.pred_boxes = Boxes(torch.tensor([[3.0, 4.0, 23.0, 14.0] if right else [30.0, 30.0, 39.0, 39.0]]))
            found.scores, found.pred_classes = torch.tensor([0.8]), torch.tensor([0])
            masks = torch.zeros(1, H, W, dtype=torch.bool)
            masks[:, 5:20, 5:20] = right
            outputs.append({"cls": torch.tensor([0.9 if right else 0.6]), "instances": found, "masks": masks})
            outputs[-1]["seg"] = torch.full((1, *sample["image"].shape[-2:]), 0.9 if right else 0.1)
        return outputs


@pytest.fixture(scope="module")
def evaluated(ownset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of prepared datasets, and that of an evaluation of its test split."""
    root, output = ownset, tmp_path_factory.mktemp("evaluated")
    cfg = _config(root, output)
    name = "ownset_test"
    found = evaluate_model(cfg, {"student": Fake()}, {name: lambda: build_test_loader(cfg, name)}, specs_of([name]))
    digest = file_content_hash(MetadataCatalog.get(name).json_file)
    meta = {"splits": [name], "datasets": {name: {"content_hash": digest}}, "weights": "", "config": cfg.dump()}
    write_results(output / "results.json", found, meta | {"weights_hash": {"student": "sha256:0"}})
    return root, output


def _config(root: Path, output: Path) -> CfgNode:
    cfg = build_cfg("", ["DATASETS.ROOT", str(root), "DATASETS.TRAIN", "('ownset_train',)", "OUTPUT_DIR", str(output),
                         "DATASETS.TEST", "('ownset_test',)", "MODEL.DEVICE", "cpu", "TEST.BOOTSTRAP", "20",
                         "INPUT.SIZE", "[32, 32]", "DATALOADER.NUM_WORKERS", "0"])  # fmt: skip
    register_datasets(cfg)
    cfg.freeze()
    return cfg


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("report")


def check_page(page: str) -> Any:
    """The page is well-formed and needs nothing outside itself: the check of tests/reporting."""
    path = Path(__file__).resolve().parents[1] / "reporting" / "test_document.py"
    found = importlib.util.spec_from_file_location("report_page_check", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.check(page)


def test_a_report_with_pictures(
    tool: ModuleType, evaluated: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([f"own={evaluated[1]}", "--output", str(tmp_path / "out"), "--gallery", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"report: {tmp_path / 'out' / 'report.html'} (")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    check_page(page)
    assert "Research use only" in page
    # Two of each kind of each task, but for masks where the truth is empty: there is none.
    keys = re.findall(r'class="picture" id="picture-own-ownset_test-(\w+)-(\w+)-\d"', page)
    expected = {(task, kind): 2 for task in ("cls", "loc", "seg") for kind in ("worst", "false", "missed")}
    expected.pop(("seg", "false"))
    assert {key: keys.count(key) for key in keys} == expected
    assert "cls: absent class, highest probability" in page and "loc: most missed boxes" in page
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert facts["tables"]["classes-own-loc"]["rows"][0][3] == "n"
    assert (tmp_path / "out" / "tables" / "classes-own-seg.csv").is_file()


def test_no_pictures_when_not_asked_for_or_the_dataset_is_another(
    tool: ModuleType, evaluated: tuple[Path, Path], tmp_path: Path
) -> None:
    root, run = evaluated
    assert tool.main([str(run), "--output", str(tmp_path / "a"), "--no-pictures"]) == 0
    assert "No images shown" not in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert tool.main([str(run), "--output", str(tmp_path / "b"), "--data", str(tmp_path)]) == 0
    page = (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    assert "No images shown for ownset_test:" in page and "data:image/webp" not in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gallery", "-1"], "--gallery must be 0 or more"),
        (["--paper", "absent.yaml"], "absent.yaml"),
        (["--data", "absent"], "--data absent: no such folder"),
        (["--compare", "own", "own", "--draws", "0"], "--compare needs bootstrap resamples"),
        (["--compare", "own", "other"], "--compare other: no evaluated run of that name"),
    ],
)
def test_errors_are_one_line(
    tool: ModuleType,
    evaluated: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert tool.main([f"own={evaluated[1]}", "--output", str(tmp_path / "out"), *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert tool.main([str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "is not a run" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(
    tool: ModuleType, evaluated: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file")
    assert tool.main([str(evaluated[1]), "--output", str(tmp_path / "out"), "--no-pictures"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "out") in error and error.count("\n") == 1
