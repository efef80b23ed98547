"""tools/visualize_predictions.py on drawn films."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from fx_d2.evaluation.predictions import write_predictions

COUNT = 10


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("visualize_predictions")


@pytest.fixture
def world(ownset: Path, tmp_path: Path) -> Path:
    """A folder with the config of the drawn films."""
    (tmp_path / "config.yaml").write_text(
        f"DATASETS:\n  ROOT: {ownset}\n  TRAIN: [ownset_train]\n  TEST: [ownset_test]\nMODEL:\n  DEVICE: cpu\n"
    )
    return tmp_path


def records(ids: range) -> list[dict[str, Any]]:
    row = {"cls": [0.4], "boxes": [[3, 4, 23, 14]], "scores": [0.9], "classes": [0]}
    return [{"file_name": f"/elsewhere/film{i - 1}.png", "image_id": i} | row for i in ids]


def arguments(world: Path, *more: str) -> list[str]:
    base = ["--config-file", str(world / "config.yaml"), "--dataset", "ownset_test", "--output", str(world / "out")]
    return [*base, *more]


def test_pictures_from_a_predictions_file(tool: ModuleType, world: Path) -> None:
    path = world / "predictions_teacher.json"
    write_predictions(path, "teacher", {"ownset_test": records(range(1, COUNT + 1))}, 0.05)
    assert tool.main(arguments(world, "--predictions", str(path), "--num", "3")) == 0
    names = sorted(p.name for p in (world / "out").iterdir())
    assert names == ["000001_film0_teacher.png", "000005_film4_teacher.png", "000010_film9_teacher.png"]
    assert cv2.imread(str(world / "out" / names[0])).shape[2] == 3


class Fake(nn.Module):
    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = []
        for sample in batch:
            assert sample["image"].dtype == torch.uint8
            found = Instances((sample["height"], sample["width"]))
            found.pred_boxes = Boxes(torch.tensor([[1.0, 1.0, 9.0, 9.0]]))
            found.scores = torch.tensor([0.8])
            found.pred_classes = torch.tensor([0])
            masks = torch.ones(1, sample["height"], sample["width"], dtype=torch.bool)
            outputs.append({"cls": torch.tensor([0.5]), "instances": found, "masks": masks})
        return outputs


def test_pictures_from_a_checkpoint(tool: ModuleType, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_models(cfg: Any) -> dict[str, nn.Module]:
        asked.append(list(cfg.TEST.MODELS))
        return {name: Fake() for name in cfg.TEST.MODELS}

    monkeypatch.setattr("fx_d2.engine.checkpoint.load_models", load_models)
    assert tool.main(arguments(world, "--num", "2", "--which", "teacher", "TEST.BATCH_SIZE", "1")) == 0
    assert asked == [["teacher"]]
    assert sorted(p.name for p in (world / "out").iterdir()) == [
        "000001_film0_teacher.png",
        "000010_film9_teacher.png",
    ]


@pytest.mark.parametrize(
    ("ids", "more", "message"),
    [
        (range(1, 11), ("--which", "student"), "predictions of the teacher, but --which is student"),
        (range(1, 11), ("--dataset", "nowhere_test"), "nowhere_test: not a split of the config"),
        (range(1, 11), ("--num", "0"), "--num 0"),
        (range(1, 11), ("--score-thresh", "0.01"), "but 0.01 was requested"),
        (range(50, 52), (), "no image of this split to draw"),
        (range(2, 3), ("--predictions", "absent.json"), "absent.json"),
    ],
)
def test_errors_are_one_line(
    tool: ModuleType, world: Path, capsys: pytest.CaptureFixture[str], ids: range, more: tuple[str, ...], message: str
) -> None:
    path = world / "predictions_teacher.json"
    write_predictions(path, "teacher", {"ownset_test": records(ids)}, 0.05)
    assert tool.main(arguments(world, "--predictions", str(path), *more)) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_predictions_of_other_images_are_refused(
    tool: ModuleType, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "predictions_student.json"
    shifted = [record | {"image_id": record["image_id"] - 1} for record in records(range(2, 5))]
    write_predictions(path, "student", {"ownset_test": shifted}, 0.05)
    assert tool.main(arguments(world, "--predictions", str(path))) == 1
    assert "is film1.png in the file and film0.png in the dataset" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(
    tool: ModuleType, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "predictions_student.json"
    write_predictions(path, "student", {"ownset_test": records(range(1, 3))}, 0.05)
    (world / "out").write_text("a file")
    assert tool.main(arguments(world, "--predictions", str(path))) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(world / "out") in error and error.count("\n") == 1
