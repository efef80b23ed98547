import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from fx_d2.engine import FXTrainer

MakeCfg = Callable[..., CfgNode]


def _trainer(cfg: CfgNode) -> FXTrainer:
    return FXTrainer(cfg)


def test_a_line_per_pass_names_dataset_task_mode_step_loss_and_time_left(
    make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fx_d2.engine.hooks"):
        _trainer(make_cfg()).train()
    lines = [r.getMessage() for r in caplog.records if r.name == "fx_d2.engine.hooks"]
    assert len(lines) == 6
    assert "cycle 1/1 pass  2/6 alpha" in lines[1] and "loc lock" in lines[1] and "step   2/2" in lines[1]
    assert all("loss" in line and "left 0:" in line for line in lines)


def test_checkpoints_rotate_and_the_last_one_is_final(make_cfg: MakeCfg, tmp_path: Path) -> None:
    cfg = make_cfg("SCHEDULE.CYCLES", "4", "SCHEDULE.ITERS_PER_PASS", "1", "SOLVER.CHECKPOINTS_TO_KEEP", "2")
    _trainer(cfg).train()
    names = sorted(p.name for p in (tmp_path / "run").glob("*.pth"))
    assert len(names) == 3 and names[0] == "model_0000017.pth" and "model_final.pth" in names
    content = torch.load(tmp_path / "run" / "model_final.pth")
    assert content["iteration"] == 23 and content["seed"] == 3
    assert content["classes"]["beta"]["cls_classes"] == ["dark", "grey", "bright"]
    assert "SCHEDULE" in content["config"]


def test_the_teacher_moves_once_a_pass_before_it_is_saved(make_cfg: MakeCfg, tmp_path: Path) -> None:
    trainer = _trainer(make_cfg())
    moved: list[int] = []
    original = trainer.teacher.update
    trainer.teacher.update = lambda student: (moved.append(trainer.iter), original(student))
    trainer.train()
    ends = [i for i in range(trainer.max_iter) if trainer.schedule.at(i).last]
    assert moved == ends and len(ends) == 6
    saved = torch.load(tmp_path / "run" / "model_final.pth")["teacher"]
    assert all(torch.equal(v, saved[k]) for k, v in trainer.teacher.state_dict().items())
