import copy
import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.engine import FXTrainer, PhaseSchedule, guards
from fx_d2.engine.guards import check_disk, check_heads, check_norm, check_patterns, check_values, checkpoint_bytes
from fx_d2.structures import FXError, Phase

MakeCfg = Callable[..., CfgNode]
ONLY_CLS = "[{'task': 'cls', 'share': 1.0, 'train': ['backbone', 'cls_heads']}]"


def test_one_image_a_process_has_no_batch_statistics(make_cfg: MakeCfg) -> None:
    one = ("SCHEDULE.BATCH_SIZE.SEG", "1")
    with pytest.raises(FXError, match=r"SCHEDULE\.BATCH_SIZE\.SEG gives each process one image.*GN"):
        FXTrainer(make_cfg(*one))
    for fine in (("MODEL.SEG.NORM", "GN", "MODEL.SEG.DIM", "32"), ("SCHEDULE.STRATEGY", ONLY_CLS)):
        cfg = make_cfg(*one, *fine)
        check_norm(cfg, build_model(cfg))


def test_one_image_of_several_processes_each_is_one_image(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_cfg("SCHEDULE.BATCH_SIZE.SEG", "2")
    model = build_model(cfg)
    check_norm(cfg, model)
    monkeypatch.setattr(guards.comm, "get_world_size", lambda: 2)
    with pytest.raises(FXError, match=r"SCHEDULE\.BATCH_SIZE\.SEG"):
        check_norm(cfg, model)


def test_synchronised_statistics_need_gpus(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_cfg("MODEL.SEG.NORM", "SyncBN")
    model = build_model(cfg)
    check_norm(cfg, model)
    monkeypatch.setattr(guards.comm, "get_world_size", lambda: 2)
    with pytest.raises(FXError, match="naiveSyncBN"):
        check_norm(cfg, model)


def test_widths_that_groups_do_not_divide(make_cfg: MakeCfg) -> None:
    with pytest.raises(FXError, match=r"MODEL\.SEG\.NORM GN has 32 groups.*16 channels"):
        build_model(make_cfg("MODEL.SEG.NORM", "GN", "MODEL.SEG.DIM", "16"))
    with pytest.raises(FXError, match=r"MODEL\.LOC\.HIDDEN_DIM 48"):
        build_model(make_cfg("MODEL.LOC.HIDDEN_DIM", "48"))


def test_heads_passes_and_rows_agree(make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(make_cfg())
    phases = [Phase(*slot, ("backbone",)) for slot in (("alpha", "cls"), ("alpha", "loc"), ("alpha", "seg"))]
    with caplog.at_level(logging.WARNING):
        check_heads(model, PhaseSchedule(phases, [1, 1, 1], 1))
    assert "never trains the heads beta/cls" in caplog.text
    with pytest.raises(FXError, match=r"\('beta', 'loc'\)"):
        check_heads(model, PhaseSchedule([Phase("beta", "loc", ("backbone",))], [1], 1))
    del model.cls_heads["beta"]
    with pytest.raises(FXError, match=r"\('beta', 'cls'\)"):
        check_heads(model, PhaseSchedule(phases, [1, 1, 1], 1))


def test_a_split_without_a_head_and_settings_that_save_nothing(make_cfg: MakeCfg) -> None:
    only = ("DATASETS.TRAIN", "('alpha_train',)")
    with pytest.raises(FXError, match="beta_val.*no head"):
        FXTrainer(make_cfg(*only), lambda models, final: {})
    FXTrainer(make_cfg(*only))
    with pytest.raises(FXError, match="CHECKPOINT_CYCLES"):
        FXTrainer(make_cfg("SOLVER.CHECKPOINT_CYCLES", "0"))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SOLVER.BASE_LR", "-1.0"), "SOLVER.BASE_LR is -1.0: it must be above 0"),
        (("SOLVER.BASE_LR", "0.0"), "SOLVER.BASE_LR is 0.0: it must be above 0"),
        (("SOLVER.CLIP_NORM.LOC", "-0.1"), "SOLVER.CLIP_NORM.LOC is -0.1: it must be 0 or more"),
        (("SOLVER.WARMUP_CYCLES", "-0.5"), "SOLVER.WARMUP_CYCLES is -0.5"),
        (("MODEL.TEACHER.CONSISTENCY", "1.5"), "MODEL.TEACHER.CONSISTENCY is 1.5: it must be from 0 to 1"),
        (("SOLVER.LAYER_DECAY", "0.0"), "SOLVER.LAYER_DECAY is 0.0: it must be above 0"),
        (("SOLVER.LAYER_DECAY", "1.5"), "SOLVER.LAYER_DECAY is 1.5"),
        (("SOLVER.OPTIMIZER", "sgd", "SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0.0"), "SOLVER.NESTEROV needs"),
        (("SOLVER.LR_FACTOR.BACKBONE", "-0.1"), "SOLVER.LR_FACTOR.BACKBONE is -0.1: it must be 0 or more"),
        (("DATALOADER.NUM_WORKERS", "-1"), "DATALOADER.NUM_WORKERS is -1: it must be 0 or more"),
        (("TEST.EVAL_PASSES", "-1"), "TEST.EVAL_PASSES is -1"),
        (("TEST.BATCH_SIZE", "0"), "TEST.BATCH_SIZE is 0: it must be 1 or more"),
        (("TEST.MODELS", "['ema']"), "TEST.MODELS is"),
        (("TEST.MODELS", "[]"), "TEST.MODELS is"),
        (("SOLVER.MICRO_BATCH.SEG", "1"), "SOLVER.MICRO_BATCH.SEG"),
        (("MODEL.WEIGHTS_FROM", "best"), "MODEL.WEIGHTS_FROM is 'best'"),
        (("MODEL.WEIGHTS_FROM", "teacher"), "but MODEL.WEIGHTS is empty"),
    ],
)
def test_numbers_and_words_that_mean_nothing(make_cfg: MakeCfg, opts: tuple[str, ...], message: str) -> None:
    with pytest.raises(FXError, match=re.escape(message)):
        FXTrainer(make_cfg(*opts))


@pytest.mark.parametrize(
    ("least", "keys"),
    [
        (0, "SOLVER: MOMENTUM WEIGHT_DECAY WEIGHT_DECAY_NORM WEIGHT_DECAY_BIAS WEIGHT_DECAY_EMBED WARMUP_CYCLES "
            "FINAL_LR_FACTOR CHECKPOINT_STEPS CHECKPOINT_MINUTES CHECKPOINT_KEEP_CYCLES"),
        (1, "SOLVER: CHECKPOINT_CYCLES CHECKPOINTS_TO_KEEP"),
        (0, "SOLVER.CLIP_NORM: CLS LOC SEG"),
        (0, "MODEL.TEACHER: CONSISTENCY"),
        (0, "DATASETS: LIMIT"),
        (0, "DATASETS.FEW_SHOT: IMAGES"),
        (0, "TEST: EVAL_PASSES EVAL_CYCLES"),
    ],
)  # fmt: skip
def test_the_least_that_each_number_may_be(make_cfg: MakeCfg, least: int, keys: str) -> None:
    node, _, names = keys.partition(": ")
    for name in names.split():
        key, cfg = f"{node}.{name}", make_cfg()
        check_values(_with(cfg, key, least))
        with pytest.raises(FXError, match=re.escape(key)):
            check_values(_with(cfg, key, least - 1))


@pytest.mark.parametrize("key", ["SOLVER.MOMENTUM", "MODEL.TEACHER.CONSISTENCY", "SOLVER.LAYER_DECAY"])
def test_shares_are_at_most_one(make_cfg: MakeCfg, key: str) -> None:
    check_values(_with(make_cfg(), key, 1.0))
    with pytest.raises(FXError, match=re.escape(key)):
        check_values(_with(make_cfg(), key, 1.01))


def _with(cfg: CfgNode, key: str, value: float) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    node, _, name = key.rpartition(".")
    functools.reduce(getattr, node.split("."), cfg)[name] = value
    return cfg


def test_patterns_are_held_against_the_metrics_that_there_will_be(make_cfg: MakeCfg) -> None:
    metrics = ["student/a/cls/auroc", "student/a/cls/auroc/edema", "student/a/cls/ap", "student/a/loc/AP40"]
    check_patterns(make_cfg("SOLVER.CHECKPOINT_BEST", "['student/*/loc/AP40', '*/edema']"), metrics)
    with pytest.raises(
        FXError, match="'student/.*/seg/dice' matches no .*are student/a/cls/auroc, student/a/loc/AP40$"
    ):
        check_patterns(make_cfg("SOLVER.CHECKPOINT_BEST", "['student/*/seg/dice']"), metrics)


def test_images_are_read_before_the_first_step(make_cfg: MakeCfg, world: Path) -> None:
    for split in ("train", "val"):
        path = world / "alpha" / "images" / f"{split}_0.png"
        content = path.read_bytes()
        path.write_bytes(content[:100])
        try:
            with pytest.raises(FXError, match=f"{split}_0.png"):
                FXTrainer(make_cfg(), lambda models, final: {})
        finally:
            path.write_bytes(content)


@pytest.mark.parametrize(("optimizer", "options"), [("adamw", ()), ("sgd", ()), ("sgd", ("SOLVER.MOMENTUM", "0.0"))])
def test_the_size_of_a_checkpoint_is_known_beforehand(
    make_cfg: MakeCfg, tmp_path: Path, optimizer: str, options: tuple[str, ...]
) -> None:
    trainer = FXTrainer(make_cfg("SCHEDULE.ITERS_PER_PASS", "1", "SOLVER.OPTIMIZER", optimizer, *options))
    expected = checkpoint_bytes(trainer.cfg, trainer.model, trainer.teacher)
    trainer.train()
    size = (tmp_path / "run" / "model_final.pth").stat().st_size
    parameters = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    # Names and headers: a few hundred bytes for each of four times 220 tensors. It is less than a moment.
    assert expected < size < expected + 700 * 1000 < expected + parameters


def test_too_little_room_is_said_before_the_first_step(
    make_cfg: MakeCfg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_cfg("SOLVER.CHECKPOINT_KEEP_CYCLES", "2", "SCHEDULE.CYCLES", "7", "SOLVER.CHECKPOINT_BEST", "['a']")
    model = torch.nn.Linear(1000, 1000)
    size = checkpoint_bytes(cfg, model, copy.deepcopy(model))
    assert size == 4 * 4 * 1001000
    (tmp_path / "run").mkdir()
    # Two last ones, those of three cycles, one best, one being written.
    monkeypatch.setattr(guards.shutil, "disk_usage", lambda folder: SimpleNamespace(free=7 * size))
    check_disk(cfg, model, copy.deepcopy(model))
    monkeypatch.setattr(guards.shutil, "disk_usage", lambda folder: SimpleNamespace(free=7 * size - 1))
    with pytest.raises(FXError, match="7 checkpoints of 0.02 GB need 1 MB more"):
        check_disk(cfg, model, copy.deepcopy(model))
    with pytest.raises(FXError, match="OUTPUT_DIR"):
        FXTrainer(make_cfg("OUTPUT_DIR", str(tmp_path / "other"), "SOLVER.CHECKPOINTS_TO_KEEP", "999")).train()
    (tmp_path / "run" / "model_0000005.pth").write_bytes(b"x")
    check_disk(cfg, model, copy.deepcopy(model))


def test_best_checkpoints_that_are_there_need_no_more_room(
    make_cfg: MakeCfg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a resumed run finds them: one of the best is a second name of a numbered one, and takes room once."""
    cfg = make_cfg("SOLVER.CHECKPOINT_BEST", "['a', 'b']")
    model = torch.nn.Linear(1000, 1000)
    size, folder = checkpoint_bytes(cfg, model, None), tmp_path / "run"
    folder.mkdir()
    for name in ("model_0000005.pth", "model_best_b.pth"):
        with (folder / name).open("wb") as stream:
            stream.truncate(size)
    (folder / "model_best_a.pth").hardlink_to(folder / "model_0000005.pth")
    # Five in all, of which two are there.
    monkeypatch.setattr(guards.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * size))
    check_disk(cfg, model, None)
    monkeypatch.setattr(guards.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * size - 1))
    with pytest.raises(FXError, match="5 checkpoints"):
        check_disk(cfg, model, None)


def test_no_model_is_chosen_on_test_splits(make_cfg: MakeCfg) -> None:
    best = ("SOLVER.CHECKPOINT_BEST", "['student/*/cls/auroc']")
    with pytest.raises(FXError, match="select a model on test splits"):
        FXTrainer(make_cfg(*best, "TEST.SPLIT", "test"), lambda models, final: {})


def test_a_best_model_needs_a_split_to_be_chosen_on(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.CHECKPOINT_BEST", "['student/*/cls/auroc']", "DATASETS.TEST", "()")
    with pytest.raises(FXError, match=r"SOLVER\.CHECKPOINT_BEST .*DATASETS\.TEST"):
        FXTrainer(cfg, lambda models, final: {})
    FXTrainer(cfg)
