from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from fx_d2.engine import FXTrainer
from fx_d2.engine.rehearsal import Measured, cycle_seconds, durations, rehearse, representatives
from fx_d2.engine.schedule import PhaseSchedule
from fx_d2.structures import FXError, Phase

MakeCfg = Callable[..., CfgNode]
LOCKED, RELEASED = Phase("a", "loc", ("loc_decoders",)), Phase("a", "loc", ("loc_encoder", "loc_decoders"))


def test_each_kind_is_tried_on_the_dataset_with_most_classes() -> None:
    phases = [LOCKED, RELEASED, Phase("b", "loc", ("loc_decoders", "loc_encoder")), Phase("b", "cls", ("backbone",))]
    schedule = PhaseSchedule(phases, [1] * 4, 1)
    found = representatives(schedule, {("a", "loc"): 1, ("b", "loc"): 3, ("b", "cls"): 2})
    assert found == {LOCKED.kind: 0, RELEASED.kind: 2, phases[3].kind: 3}


def test_reading_counts_where_it_is_the_slower_part() -> None:
    schedule = PhaseSchedule([LOCKED, RELEASED], [10, 5], 2)
    measured = {
        LOCKED.kind: Measured(LOCKED, 1.0, 4.0, 0, {}, {}),
        RELEASED.kind: Measured(RELEASED, 6.0, 4.0, 0, {}, {}),
    }
    assert cycle_seconds(schedule, measured, workers=0) == 10 * 5 + 5 * 10
    assert cycle_seconds(schedule, measured, workers=2) == 10 * 2 + 5 * 6
    text = durations(schedule, measured, workers=2)
    assert "0:00:50 per cycle, 0:01:40 for SCHEDULE.CYCLES 2" in text and text.endswith("than computing in a/loc/lock")
    assert "slower than" not in durations(schedule, measured, workers=4)


def test_every_kind_steps_and_nothing_is_left(make_cfg: MakeCfg, tmp_path: Path) -> None:
    cfg = make_cfg("SCHEDULE.CYCLES", "3")
    trainer = FXTrainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    told = rehearse(trainer, workers=0)
    lines = told.splitlines()
    assert [line.split()[:2] for line in lines[2:7]] == [
        ["cls", "beta"],
        ["loc", "alpha"],
        ["loc", "alpha"],
        ["seg", "alpha"],
        ["seg", "alpha"],
    ]
    assert [line.split()[-4] for line in lines[2:7]] == ["6", "2", "3", "2", "3"]
    assert max(map(len, lines[:7])) <= 160
    assert "for SCHEDULE.CYCLES 3" in told and "a checkpoint takes" in told
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {name for name, _ in trainer.model.named_children()}
    assert not list((tmp_path / "run").iterdir())


def test_what_would_stop_the_training_stops_the_dry_run(make_cfg: MakeCfg) -> None:
    trainer = FXTrainer(make_cfg())
    with torch.no_grad():
        trainer.model.seg_heads["alpha"].weight.fill_(float("nan"))
    with pytest.raises(FXError, match="not finite .* alpha/seg/lock"):
        rehearse(trainer, workers=0)
