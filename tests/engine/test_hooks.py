import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from fx_d2.engine import FXTrainer

MakeCfg = Callable[..., CfgNode]


def _trainer(cfg: CfgNode) -> FXTrainer:
    return FXTrainer(cfg)


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "fx_d2.engine.hooks"]


def test_two_lines_per_pass_say_what_learns_and_how_it_went(
    make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fx_d2.engine.hooks"):
        trainer = _trainer(make_cfg())
        trainer.train()
    lines = _lines(caplog)
    assert len(lines) == 12
    assert "cycle 1/1 pass  2/6 alpha" in lines[2] and "loc lock" in lines[2]
    assert "learns loc_decoders" in lines[2] and "frozen backbone 309.5K, loc_encoder 52.1K" in lines[2]
    assert lines[2].endswith("5 images in 2 steps of 4") and lines[0].endswith("10 images in 3 steps of 4")
    assert "cycle 1/1 pass  2/6 alpha" in lines[3] and "step   2/2" in lines[3]
    assert all(re.search(r"loss +\d+\.\d+ .* left: pass 0:00:00, cycle 0:.*, run 0:", line) for line in lines[1::2])
    assert lines[-1].endswith("run 0:00:00")


def test_the_best_score_so_far_stands_in_the_line(make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture) -> None:
    best = (
        "SOLVER.CHECKPOINT_BEST",
        "['student/*/cls/auroc']",
        "TEST.EVAL_PASSES",
        "2",
        "SCHEDULE.ITERS_PER_PASS",
        "1",
    )
    scores = iter([0.5, 0.75, 0.25])
    with caplog.at_level(logging.INFO, logger="fx_d2.engine.hooks"):
        FXTrainer(make_cfg(*best), lambda models, final: {"student/alpha/cls/auroc": next(scores)}).train()
    ends = _lines(caplog)[1::2]
    shown = [re.search(r"best student/\*/cls/auroc (\S+)", line) for line in ends]
    assert [found and found.group(1) for found in shown] == [None, None, "0.5000", "0.5000", "0.7500", "0.7500"]


def test_a_run_resumed_inside_a_pass_says_what_learns(make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture) -> None:
    opts = ("SOLVER.CHECKPOINT_STEPS", "1", "SOLVER.CHECKPOINTS_TO_KEEP", "99")
    trainer = _trainer(make_cfg(*opts))
    trainer.train()
    folder = Path(trainer.cfg.OUTPUT_DIR)
    for path in folder.glob("*.pth"):
        if path.name != "model_0000000.pth":
            path.unlink()
    caplog.clear()  # another test may have let the logger speak
    again = _trainer(make_cfg(*opts))
    again.resume_or_load(True)
    with caplog.at_level(logging.INFO, logger="fx_d2.engine.hooks"):
        again.train()
    assert _lines(caplog)[0].endswith("3 steps of 4, from step 2 on")


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
