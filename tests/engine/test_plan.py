import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from fx_d2.data import build_train_data
from fx_d2.engine import FXTrainer, build_cfg
from fx_d2.engine.plan import build_plan, count_images, phase_flops
from fx_d2.structures import FXError, Phase

MakeCfg = Callable[..., CfgNode]
ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "projects" / "FoundationX" / "configs" / "base.yaml"
COSTS = {"backbone": 100, "cls_heads": 1, "loc_encoder": 20, "loc_decoders": 30, "seg_decoder": 7, "seg_heads": 2}


@pytest.mark.parametrize(
    ("phase", "guides", "guided", "expected"),
    [
        # Forward and twice that backward; the teacher's trunk.
        (Phase("a", "cls", ("backbone", "cls_heads")), ["backbone"], False, 3 * 101 + 100),
        # Nothing behind the decoder needs a gradient, and the teacher does not run.
        (Phase("a", "loc", ("loc_decoders",)), [], False, 100 + 20 + 3 * 30),
        # The gradient passes through the frozen encoder and decoder once.
        (Phase("a", "loc", ("backbone",)), ["backbone"], False, 3 * 100 + 2 * 20 + 2 * 30 + 100),
        (Phase("a", "loc", ("backbone", "loc_encoder", "loc_decoders")), ["backbone", "loc_encoder"], False, 450 + 120),
        (Phase("a", "seg", ("seg_heads",)), [], True, 100 + 7 + 3 * 2 + 50),
        (Phase("a", "seg", ("seg_decoder",)), ["seg_decoder"], True, 100 + 3 * 7 + 2 * 2 + 50 + 107 + 50),
        (Phase("a", "cls", ("cls_heads",)), [], True, 100 + 3),
    ],
)
def test_arithmetic_of_a_step(phase: Phase, guides: list[str], guided: bool, expected: int) -> None:
    assert phase_flops(phase, COSTS, guides, guided=guided) == expected


def test_the_plan_is_what_is_trained(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SCHEDULE.ORDER", "shuffled", "SCHEDULE.CYCLES", "3")
    plan, trainer = build_plan(cfg), FXTrainer(cfg)
    assert [one.phase for one in plan.passes] == list(trainer.schedule.phases)
    assert [one.steps for one in plan.passes] == list(trainer.schedule.steps)
    assert plan.parameters == sum(p.numel() for p in trainer.model.parameters())
    for one in plan.passes:
        trainer.enter_phase(next(s for s in map(trainer.schedule.at, range(99)) if s.phase == one.phase))
        assert sum(one.learning.values()) == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        assert set(one.learning) == set(one.phase.trainable) and set(one.frozen) == set(one.phase.frozen)
        size = trainer.data.sizes[one.phase.dataset, one.phase.task]
        assert one.images == (size if one.phase.share == 1 else size // 2)
    assert "each cycle has its own order" in plan.totals() and "3 cycles, 48 iterations" in plan.totals()


def test_numbers_of_images_are_the_loaders(make_cfg: MakeCfg) -> None:
    """By which SCHEDULE.ORDER may go: also where a task is trained on some datasets only, or not at all."""
    row = "{'task': 'cls', 'share': 1.0, 'train': ['cls_heads'], 'datasets': ['beta']}"
    for cfg in (make_cfg(), make_cfg("SCHEDULE.STRATEGY", f"[{row}]")):
        assert count_images(cfg) == (build_train_data(cfg).sizes, [])


def test_images_are_not_read(make_cfg: MakeCfg, world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("alpha", "beta"):
        (copy / name).mkdir(parents=True)
        for file in ("dataset.yaml", "train.json"):
            shutil.copy(world / name / file, copy / name)
    assert len(build_plan(make_cfg("DATASETS.ROOT", str(copy), "DATASETS.TEST", "()")).passes) == 6


def test_without_files_the_published_numbers_stand_in(tmp_path: Path) -> None:
    cfg = build_cfg(str(BASE), ["DATASETS.ROOT", str(tmp_path)])
    plan = build_plan(cfg)
    lines = plan.table().splitlines()[2:]
    assert len(lines) == 29 and max(map(len, lines)) <= 160
    assert "backbone 86.7M, loc_encoder 10.5M, loc_decoders 10.1M" in lines[7]
    assert "~223,414" in lines[0] and lines[0].split()[-3] == "9,309"
    shares = [float(line.split()[-2]) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=1.5)
    assert "29 passes in 20 slots" in plan.totals() and "published number" in plan.totals()
    assert plan.published == tuple(dict.fromkeys(one.phase.dataset for one in plan.passes))
    assert not list(tmp_path.iterdir())


def test_a_row_of_ones_own_needs_its_file(make_cfg: MakeCfg, world: Path, tmp_path: Path) -> None:
    (tmp_path / "copy" / "beta").mkdir(parents=True)
    shutil.copy(world / "beta" / "dataset.yaml", tmp_path / "copy" / "beta")
    cfg = make_cfg()
    cfg.defrost()
    cfg.DATASETS.ROOT, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = str(tmp_path / "copy"), ["beta_train"], []
    with pytest.raises(FXError, match="beta_train: annotation file .* not found"):
        build_plan(cfg)
    content = json.loads((world / "beta" / "train.json").read_text())
    assert content["images"]
