import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from fx_d2.engine import FXTrainer
from fx_d2.engine.trainer import build_schedule
from fx_d2.structures import FXError

MakeCfg = Callable[..., CfgNode]


def _train(cfg: CfgNode, resume: bool = False) -> FXTrainer:
    torch.manual_seed(cfg.SEED)
    trainer = FXTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def _equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())


def test_schedule_counts_steps_and_caps_them(make_cfg: MakeCfg) -> None:
    sizes = {("alpha", "cls"): 10, ("alpha", "loc"): 10, ("alpha", "seg"): 8, ("beta", "cls"): 1}
    assert build_schedule(make_cfg(), sizes).steps == (3, 2, 3, 1, 2, 1)
    assert build_schedule(make_cfg("SCHEDULE.ITERS_PER_PASS", "2"), sizes).steps == (2, 2, 2, 1, 2, 1)


def test_a_cycle_trains_everything_and_moves_the_teacher(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    torch.manual_seed(cfg.SEED)
    before = {k: v.clone() for k, v in FXTrainer(cfg).model.state_dict().items() if v.is_floating_point()}
    trainer = _train(cfg)
    after, followed = trainer.model.state_dict(), trainer.teacher.model.state_dict()
    still = [k for k, v in before.items() if torch.equal(v, after[k])]
    # Labels flipped by denoising reach every class; nothing else may be left behind by a whole cycle.
    assert not still
    assert not [k for k, v in before.items() if torch.equal(v, followed[k]) or torch.equal(after[k], followed[k])]


def test_resume_goes_on_from_the_last_sound_checkpoint_and_ends_bit_equal(make_cfg: MakeCfg, tmp_path: Path) -> None:
    opts = ("SCHEDULE.CYCLES", "2", "SOLVER.CHECKPOINT_CYCLES", "1")
    whole = _train(make_cfg(*opts))
    last = tmp_path / "run" / f"model_{whole.max_iter - 1:07d}.pth"
    last.write_bytes(last.read_bytes()[:-1000])
    again = _train(make_cfg(*opts, "DATALOADER.NUM_WORKERS", "1"), resume=True)
    assert again.start_iter == again.schedule.cycle_length
    assert _equal(whole.model, again.model) and _equal(whole.teacher, again.teacher)


def test_resume_without_a_checkpoint_begins_and_without_resume_nothing_is_overwritten(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SCHEDULE.ITERS_PER_PASS", "1")
    assert _train(cfg, resume=True).start_iter == 0
    with pytest.raises(FXError, match=r"holds the checkpoints of a run, the last is model_0000005\.pth.*--resume"):
        _train(cfg)


def test_without_consistency_there_is_no_teacher(make_cfg: MakeCfg) -> None:
    trainer = _train(make_cfg("MODEL.TEACHER.CONSISTENCY", "0.0", "SCHEDULE.ITERS_PER_PASS", "1"))
    assert trainer.teacher is None and set(trainer.models()) == {"student"}


def test_evaluation_is_called_with_both_models_where_asked(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("TEST.EVAL_CYCLES", "1", "SCHEDULE.CYCLES", "2", "SCHEDULE.ITERS_PER_PASS", "1")
    calls: list[tuple[str, ...]] = []
    trainer = FXTrainer(cfg, lambda models, final: calls.append(tuple(models)) or {"student/alpha/cls/auroc": 0.5})
    trainer.train()
    assert calls == [("student", "teacher")] * 2


def test_metrics_are_written_per_dataset_and_task(make_cfg: MakeCfg, tmp_path: Path) -> None:
    _train(make_cfg())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    keys = set().union(*rows)
    assert {"alpha/loc/total_loss", "alpha/loc/grad_norm", "loss_seg_dice", "lr", "data_time"} <= keys
    assert "loss_loc_consistency_loc_encoder" in keys


def test_a_loss_that_is_not_finite_stops_with_dataset_phase_and_images(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    trainer = FXTrainer(cfg)
    with torch.no_grad():
        trainer.model.cls_heads["alpha"].bias.fill_(float("nan"))
    weights = trainer.model.backbone.cls_norm.weight.clone()
    with pytest.raises(FXError, match=r"not finite at iteration 0 in alpha/cls/release.*train_\d\.png"):
        trainer.train()
    assert torch.equal(weights, trainer.model.backbone.cls_norm.weight)


def test_float16_needs_a_gpu(make_cfg: MakeCfg) -> None:
    with pytest.raises(FXError, match="float16 needs a GPU"):
        FXTrainer(make_cfg("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"))


def test_bfloat16_autocast_trains(make_cfg: MakeCfg) -> None:
    trainer = _train(make_cfg("SOLVER.AMP.ENABLED", "True", "SCHEDULE.ITERS_PER_PASS", "1"))
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in trainer.model.parameters())
