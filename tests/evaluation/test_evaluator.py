from __future__ import annotations

import functools
import json
from dataclasses import asdict
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
from fx_d2.evaluation import (
    MetricOptions,
    build_evaluators,
    evaluate_model,
    metric_names,
    read_predictions,
    read_scores,
)
from fx_d2.evaluation.common import plain
from fx_d2.evaluation.evaluator import _info
from fx_d2.evaluation.localization import IOU_THRESHOLDS, BoxRow
from fx_d2.evaluation.segmentation import FIELDS
from fx_d2.evaluation.subgroups import ImageInfo
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
        "meta": {"sex": "FM"[image_id % 3 == 0], "age": 7 * image_id, "view": "PA"},
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
        score = torch.full_like(sample["labels"], 0.9 if sick else 0.1)
        answers = {"cls": {"cls": score}, "loc": {"instances": found}, "seg": {"masks": mask, "seg": mask * 0.9}}
        return {key: value for task in sample["tasks"] for key, value in answers[task].items()}


def loader(spec: DatasetSpec, count: int = 8, batch: int = 3, part: slice = slice(None)) -> list[list[dict[str, Any]]]:
    samples = [make_sample(spec, i) for i in range(count)][part]
    return [samples[i : i + batch] for i in range(0, len(samples), batch)]


LOADERS = {"full_test": functools.partial(loader, FULL), "plain_test": functools.partial(loader, PLAIN)}


def test_evaluators_follow_from_the_row() -> None:
    assert [e.task for e in build_evaluators(FULL)] == ["cls", "loc", "seg"]
    assert [e.task for e in build_evaluators(PLAIN)] == ["cls"]
    assert [e.task for e in build_evaluators(FULL, ("loc",))] == ["loc"]


def test_metrics_of_two_models_on_two_datasets(tmp_path: Path) -> None:
    models = {"student": Oracle(), "teacher": Oracle(right=False)}
    metrics = evaluate_model(make_cfg(tmp_path), models, LOADERS, (FULL, PLAIN)).metrics
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
    which, records = read_predictions(path, "full_test", 0.05)
    assert which == "teacher" and sorted(records) == list(range(8))
    record = records[1]
    assert record["file_name"] == "/images/1.png"
    assert record["cls"] == [0.9] and record["boxes"] == [[2.0, 3.0, 10.0, 12.0]]
    assert record["scores"] == [0.9] and record["classes"] == [0]
    assert mask_utils.decode(record["masks"][0]).sum() == 100
    assert records[2]["boxes"] == []  # 0.04 is below TEST.SAVE_SCORE_THRESH
    assert set(read_predictions(path, "plain_test", 0.05)[1][0]) == {"file_name", "image_id", "cls"}
    scores = {"scores_teacher_full_test.npz", "scores_teacher_plain_test.npz"}
    assert {p.name for p in path.parent.iterdir()} == {"predictions_teacher.json"} | scores


def test_predictions_can_be_switched_off(tmp_path: Path) -> None:
    evaluate_model(
        make_cfg(tmp_path, SAVE_PREDICTIONS=False, SAVE_SCORES=False), {"student": Oracle()}, LOADERS, (FULL, PLAIN)
    )
    assert list(tmp_path.iterdir()) == []


def test_only_the_tasks_asked_for(tmp_path: Path) -> None:
    model = Oracle()
    metrics = evaluate_model(make_cfg(tmp_path), {"student": model}, LOADERS, (FULL, PLAIN), tasks=("seg",)).metrics
    assert {tuple(key.split("/")[1:3]) for key in metrics} == {("full", "seg")}
    assert model.seen == list(range(8))  # the other dataset's images need not be read


def test_two_splits_of_one_dataset_keep_their_names_apart(tmp_path: Path) -> None:
    loaders = LOADERS | {"plain_val": LOADERS["plain_test"]}
    metrics = evaluate_model(make_cfg(tmp_path), {"student": Oracle()}, loaders, (FULL, PLAIN)).metrics
    assert {key.split("/")[1] for key in metrics} == {"plain_val", "plain_test", "full"}
    assert set(metric_names(["student"], loaders, (FULL, PLAIN))) == set(metrics)


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    cfg, models = make_cfg(tmp_path), {"student": Oracle()}
    with pytest.raises(FXError, match="'other_test'"):
        evaluate_model(cfg, models, {"other_test": LOADERS["full_test"]}, (FULL,))
    with pytest.raises(FXError, match="no images"):
        evaluate_model(cfg, models, {"full_test": list}, (FULL,))
    models["student"].forward = lambda batch: [{}]
    with pytest.raises(FXError, match="1 results for 3 images"):
        evaluate_model(cfg, models, LOADERS, (FULL, PLAIN))


def test_progress_says_how_long_it_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fx_d2.evaluation.evaluator.LOG_SECONDS", 0.0)
    with caplog.at_level("INFO"):
        evaluate_model(make_cfg(tmp_path), {"student": Oracle()}, LOADERS, (FULL, PLAIN))
    assert any("full_test: batch 2 of 3, time left 0:00:00" in message for message in caplog.messages)
    assert any("student on full_test" in message and "AP40 100.00" in message for message in caplog.messages)
    caplog.clear()
    monkeypatch.setattr("fx_d2.evaluation.evaluator.LOG_SECONDS", 1e9)
    with caplog.at_level("INFO"):
        evaluate_model(make_cfg(tmp_path), {"student": Oracle()}, LOADERS, (FULL, PLAIN))
    assert caplog.messages and not any("batch 2 of 3" in message for message in caplog.messages)


def _distributed(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    # Rank 1 has images 4..7, and image 0 again, as a sampler that fills up would give; one split is empty there.
    parts = [slice(0, 4), slice(4, 8)]
    samples = loader(FULL, part=parts[rank])
    if rank == 1:
        samples.append([make_sample(FULL, 0)])
    only_first = loader(PLAIN) if rank == 0 else []
    loaders = {"full_test": lambda: samples, "plain_val": lambda: only_first}
    cfg = make_cfg(Path(folder), BOOTSTRAP=50, HAUSDORFF=True, CROSS_HEADS=True)
    found = evaluate_model(cfg, {"student": Oracle()}, loaders, (FULL, PLAIN))
    Path(folder, f"rank{rank}.json").write_text(json.dumps(plain(asdict(found))))
    comm.synchronize()  # a process that ends closes connections that the other may still read from
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    mp.spawn(_distributed, args=(str(tmp_path),), nprocs=2)
    together = json.loads((tmp_path / "rank0.json").read_text())
    assert not any(json.loads((tmp_path / "rank1.json").read_text()).values())
    cfg = make_cfg(tmp_path / "alone", BOOTSTRAP=50, HAUSDORFF=True, CROSS_HEADS=True)
    loaders = {"full_test": LOADERS["full_test"], "plain_val": LOADERS["plain_test"]}
    alone = plain(asdict(evaluate_model(cfg, {"student": Oracle()}, loaders, (FULL, PLAIN))))
    # Metrics, intervals, curves, operating points, subgroups, heads: all of it, to the last bit.
    assert together == alone and all(alone.values())
    files = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone" / "inference").iterdir())
    assert len(files) == 3
    for file in files:
        assert (tmp_path / file).read_bytes() == (tmp_path / "alone" / file).read_bytes(), file


def test_everything_beside_the_metrics(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, BOOTSTRAP=20, CROSS_HEADS=True)
    found = evaluate_model(cfg, {"student": Oracle()}, LOADERS, (FULL, PLAIN))
    assert found.intervals["student/full/cls/auroc"] == (1.0, 1.0)
    assert set(found.details) == {"student/full/cls", "student/full/loc", "student/full/seg", "student/full/heads",
                                  "student/plain/cls", "student/plain/heads"}  # fmt: skip
    heads = found.details["student/full/heads"]["a"]
    assert (
        heads["heads"]["plain"] | {"both": 4.0, "own_only": 0.0, "other_only": 0.0, "neither": 4.0, "auroc": 1.0}
        == (heads["heads"]["plain"])
    )
    subgroups = found.subgroups["student/full"]
    assert set(subgroups) == {"sex=F", "sex=M", "age=0-19", "age=20-39", "age=40-59"}
    assert subgroups["age=0-19"]["images"] == 3  # the newborn, too
    assert subgroups["sex=M"]["images"] == 3 and subgroups["sex=M"]["metrics"]["cls/auroc"] == 1.0
    assert "student/full/seg/dice" in found.intervals and not found.operating_points
    scores = read_scores(tmp_path / found.scores["student/full"])
    assert scores["image_id"].tolist() == list(range(8)) and scores["sex"].tolist() == list("MFFMFFMF")
    assert scores["cls_scores"].shape == (8, 1) and scores["seg_dice"].shape == (8, 1)


def test_what_is_not_known_of_an_image_is_empty() -> None:
    sample = make_sample(FULL, 1) | {"meta": {"sex": None, "age": 0}}
    assert _info(sample) == ImageInfo("/images/1.png", "1", "", "0", "")
    del sample["meta"]
    assert _info(sample) == ImageInfo("/images/1.png", "1", "", "", "")


def test_an_evaluation_in_passing_gives_the_metrics_only(tmp_path: Path) -> None:
    full = evaluate_model(make_cfg(tmp_path), {"student": Oracle()}, LOADERS, (FULL, PLAIN))
    cfg = make_cfg(tmp_path / "new", CROSS_HEADS=True)
    passing = evaluate_model(cfg, {"student": Oracle()}, LOADERS, (FULL, PLAIN), full=False)
    assert plain(passing.metrics) == plain(full.metrics) and not (tmp_path / "new").exists()
    assert not (passing.intervals or passing.details or passing.subgroups or passing.scores)


def test_operating_points_are_chosen_on_validation_and_applied_on_test(tmp_path: Path) -> None:
    loaders = {"plain_val": LOADERS["plain_test"], "plain_test": LOADERS["plain_test"]}
    chosen = evaluate_model(make_cfg(tmp_path), {"student": Oracle()}, loaders, (PLAIN,))
    entry = chosen.operating_points["student"]["plain"]
    assert entry["split"] == "plain_val" and entry["points"]["a"]["threshold"] == pytest.approx(0.9)
    assert not any("op_" in key for key in chosen.metrics)
    thresholds = {"student": {"plain": {"a": 0.9, "b": 0.05}}}
    applied = evaluate_model(
        make_cfg(tmp_path), {"student": Oracle()}, loaders, (PLAIN,), thresholds=thresholds
    ).metrics
    assert applied["student/plain_test/cls/op_specificity/b"] == 0.0
    assert not any("plain_val" in key and "op_" in key for key in applied)


RARE = DatasetSpec(name="rare", title="Rare", cls_classes=("a", "b"), loc_classes=("n", "m"), seg_classes=("s", "t"))


def test_draws_mean_the_same_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each task one class is there in one image only, which many a draw does not hold."""
    rng, images = np.random.default_rng(0), range(12)
    rows: dict[str, dict[int, Any]] = {"cls": {}, "loc": {}, "seg": {}}
    for i in images:
        rows["cls"][i] = rng.random(2).astype(np.float32), np.array([i % 2, i == 5], np.float32)
        hits = np.ones((2, len(IOU_THRESHOLDS) + 1), np.int8) * (i % 3 > 0)
        boxes = np.sort(rng.random(2).astype(np.float32))[::-1], np.array([0, 1], np.int16), np.zeros(2, np.int16)
        rows["loc"][i] = BoxRow(*boxes, hits, np.array([1, i == 5], np.int32))
        rows["seg"][i] = rng.random((len(FIELDS), 2))
        rows["seg"][i][FIELDS.index("positive")] = 1, i == 5

    def intervals(chunk: int) -> dict[str, tuple[float, float]]:
        monkeypatch.setattr("fx_d2.evaluation.bootstrap._CHUNK_NUMBERS", chunk)
        monkeypatch.setattr("fx_d2.evaluation.bootstrap.ENOUGH", 0.3)
        evaluators = build_evaluators(RARE, options=MetricOptions(bootstrap=60))
        patients = [str(i) for i in images]
        return {f"{e.task}/{k}": v for e in evaluators for k, v in e.intervals(rows[e.task], patients).items()}

    one, all_at_once = intervals(12), intervals(10**6)
    for key, pair in one.items():
        assert pair == pytest.approx(all_at_once[key], abs=1e-9, nan_ok=True), key
    assert not np.isnan([one[key] for key in ("cls/auroc", "loc/AP40", "seg/dice_positives")]).any()
