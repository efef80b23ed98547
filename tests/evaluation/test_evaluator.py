from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from pycocotools import mask as mask_utils
from torch import nn

from fx_d2.config import add_fx_config
from fx_d2.evaluation import build_evaluators, evaluate_model, read_predictions
from fx_d2.structures import DatasetSpec, FXError

FULL = DatasetSpec(name="full", title="Full", cls_classes=("a",), loc_classes=("n",), seg_classes=("m",))
PLAIN = DatasetSpec(name="plain", title="Plain", cls_classes=("a", "b"))
H, W = 20, 30


def make_cfg(folder: Path, **test: Any) -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.OUTPUT_DIR = str(folder)
    for key, value in test.items():
        cfg.TEST[key] = value
    return cfg


def make_sample(spec: DatasetSpec, image_id: int) -> dict[str, Any]:
    sick = image_id % 2
    mask = np.zeros((H, W), np.uint8, order="F")
    mask[: 10 * sick, 5:15] = 1
    rle = mask_utils.encode(mask)
    return {
        "dataset": spec.name,
        "image_id": image_id,
        "file_name": f"/images/{image_id}.png",
        "height": H,
        "width": W,
        "image": torch.zeros(1, 8, 8, dtype=torch.uint8),
        "annotated": {task: task in spec.tasks for task in ("cls", "loc", "seg")},
        "labels": torch.full((len(spec.cls_classes),), float(sick)),
        "annotations": [{"bbox": [2, 3, 8, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}] * sick,
        "masks": [{"size": rle["size"], "counts": rle["counts"].decode()}],
        "ignore_mask": None,
        "patient_id": str(image_id),
        "meta": {},
    }


class Oracle(nn.Module):
    """Answers with the truth, or with its opposite."""

    def __init__(self, right: bool = True) -> None:
        super().__init__()
        self.right = right
        self.body = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
        self.seen: list[int] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert not any(module.training for module in self.modules())
        assert not torch.is_grad_enabled()
        self.seen += [sample["image_id"] for sample in batch]
        return [self.answer(sample) for sample in batch]

    def answer(self, sample: dict[str, Any]) -> dict[str, Any]:
        sick = bool(sample["image_id"] % 2) == self.right
        found = Instances((H, W))
        found.pred_boxes = Boxes(torch.tensor([[2.0, 3.0, 10.0, 12.0], [0.0, 0.0, 5.0, 5.0]]))
        found.scores = torch.tensor([0.9 if sick else 0.04, 0.01])
        found.pred_classes = torch.tensor([0, 0])
        mask = torch.zeros(1, H, W, dtype=torch.bool)
        mask[0, : 10 * sick, 5:15] = True
        everything = {"cls": torch.full_like(sample["labels"], 0.9 if sick else 0.1), "instances": found, "masks": mask}
        keys = {"cls": "cls", "loc": "instances", "seg": "masks"}
        return {keys[task]: everything[keys[task]] for task in sample["tasks"]}


def loader(spec: DatasetSpec, count: int = 8, batch: int = 3, part: slice = slice(None)) -> list[list[dict[str, Any]]]:
    samples = [make_sample(spec, i) for i in range(count)][part]
    return [samples[i : i + batch] for i in range(0, len(samples), batch)]


LOADERS = {"full_test": functools.partial(loader, FULL), "plain_test": functools.partial(loader, PLAIN)}


def test_evaluators_follow_from_the_row() -> None:
    assert set(build_evaluators(FULL).evaluate()) == {"cls", "loc", "seg"}
    assert set(build_evaluators(PLAIN).evaluate()) == {"cls"}
    assert set(build_evaluators(FULL, ("loc",)).evaluate()) == {"loc"}


def test_metrics_of_two_models_on_two_datasets(tmp_path: Path) -> None:
    models = {"student": Oracle(), "teacher": Oracle(right=False)}
    metrics = evaluate_model(make_cfg(tmp_path), models, LOADERS, (FULL, PLAIN))
    assert metrics["student/full/cls/auroc"] == 1.0 and metrics["teacher/full/cls/auroc"] == 0.0
    assert metrics["student/full/loc/AP40"] == pytest.approx(1.0)
    assert metrics["student/full/seg/dice"] == 1.0 and metrics["teacher/full/seg/dice_positives"] == 0.0
    assert metrics["student/plain/cls/auroc/b"] == 1.0
    assert not any("/plain/loc" in key or "/plain/seg" in key for key in metrics)
    assert models["student"].seen == 2 * list(range(8))
    assert all(isinstance(value, float) for value in metrics.values())


def test_training_flags_come_back_exactly(tmp_path: Path) -> None:
    model = Oracle().train()
    model.body.eval()
    model.body[1].train()
    before = [module.training for module in model.modules()]
    evaluate_model(make_cfg(tmp_path), {"student": model}, LOADERS, (FULL, PLAIN))
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError):
        evaluate_model(make_cfg(tmp_path), {"student": model}, {"full_test": lambda: 1 / 0}, (FULL,))
    assert [module.training for module in model.modules()] == before


def test_predictions_are_saved_and_read_back(tmp_path: Path) -> None:
    evaluate_model(make_cfg(tmp_path), {"teacher": Oracle()}, LOADERS, (FULL, PLAIN))
    path = tmp_path / "inference" / "predictions_teacher.json"
    which, records = read_predictions(path, "full_test")
    assert which == "teacher" and sorted(records) == list(range(8))
    record = records[1]
    assert record["file_name"] == "/images/1.png"
    assert record["cls"] == [0.9] and record["boxes"] == [[2.0, 3.0, 10.0, 12.0]]
    assert record["scores"] == [0.9] and record["classes"] == [0]
    assert mask_utils.decode(record["masks"][0]).sum() == 100
    assert records[2]["boxes"] == []  # 0.04 is below TEST.SAVE_SCORE_THRESH
    assert set(read_predictions(path, "plain_test")[1][0]) == {"file_name", "image_id", "cls"}
    assert [p.name for p in path.parent.iterdir()] == ["predictions_teacher.json"]


def test_predictions_can_be_switched_off(tmp_path: Path) -> None:
    evaluate_model(make_cfg(tmp_path, SAVE_PREDICTIONS=False), {"student": Oracle()}, LOADERS, (FULL, PLAIN))
    assert list(tmp_path.iterdir()) == []


def test_only_the_tasks_asked_for(tmp_path: Path) -> None:
    metrics = evaluate_model(make_cfg(tmp_path), {"student": Oracle()}, LOADERS, (FULL, PLAIN), tasks=("seg",))
    assert {tuple(key.split("/")[1:3]) for key in metrics} == {("full", "seg")}


def test_two_splits_of_one_dataset_keep_their_names_apart(tmp_path: Path) -> None:
    loaders = LOADERS | {"plain_val": LOADERS["plain_test"]}
    metrics = evaluate_model(make_cfg(tmp_path), {"student": Oracle()}, loaders, (FULL, PLAIN))
    assert {key.split("/")[1] for key in metrics} == {"plain_val", "plain_test", "full"}


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    cfg, models = make_cfg(tmp_path), {"student": Oracle()}
    with pytest.raises(FXError, match="'other_test'"):
        evaluate_model(cfg, models, {"other_test": LOADERS["full_test"]}, (FULL,))
    with pytest.raises(FXError, match="no images"):
        evaluate_model(cfg, models, {"full_test": list}, (FULL,))


def test_progress_says_how_long_it_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fx_d2.evaluation.evaluator.LOG_SECONDS", 0.0)
    with caplog.at_level("INFO"):
        evaluate_model(make_cfg(tmp_path), {"student": Oracle()}, LOADERS, (FULL, PLAIN))
    assert any("full_test: batch 2 of 3, time left 0:00:00" in message for message in caplog.messages)
    assert any("student on full_test" in message and "AP40 100.00" in message for message in caplog.messages)


def _distributed(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    # Rank 1 has images 4..7, and image 0 again, as a sampler that fills up would give; one split is empty there.
    parts = [slice(0, 4), slice(4, 8)]
    samples = loader(FULL, part=parts[rank])
    if rank == 1:
        samples.append([make_sample(FULL, 0)])
    plain = loader(PLAIN) if rank == 0 else []
    loaders = {"full_test": lambda: samples, "plain_test": lambda: plain}
    metrics = evaluate_model(make_cfg(Path(folder)), {"student": Oracle()}, loaders, (FULL, PLAIN))
    Path(folder, f"rank{rank}.json").write_text(json.dumps(metrics))
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    mp.spawn(_distributed, args=(str(tmp_path),), nprocs=2)
    together = json.loads((tmp_path / "rank0.json").read_text())
    assert json.loads((tmp_path / "rank1.json").read_text()) == {}
    alone = evaluate_model(make_cfg(tmp_path / "alone"), {"student": Oracle()}, LOADERS, (FULL, PLAIN))
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        assert together[key] == value or (math.isnan(value) and math.isnan(together[key])), key
    name = "inference/predictions_student.json"
    assert (tmp_path / name).read_text() == (tmp_path / "alone" / name).read_text()
