import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fx_d2.engine import FXTrainer
from fx_d2.engine.events import PERIOD, LearningRates, defined

MakeCfg = Callable[..., CfgNode]


def _run(cfg: CfgNode, *hooks: HookBase, resume: bool = False) -> FXTrainer:
    trainer = FXTrainer(cfg, lambda models, final: {"student/alpha/cls/auroc": 0.5, "student/beta/cls/auroc": math.nan})
    trainer.resume_or_load(resume)
    trainer.register_hooks(list(hooks))
    trainer.train()
    return trainer


def _rows(folder: Path) -> list[dict]:
    text = (folder / "run" / "metrics.json").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


class _Seen(HookBase):
    """What each step recorded."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.longest = 0

    def after_step(self) -> None:
        self.losses.append(dict(self.trainer.step_losses))
        histories = self.trainer.storage.histories().values()
        self.longest = max(len(history.values()) for history in histories)


def test_every_pass_is_found_under_dataset_and_task_with_its_mean(make_cfg: MakeCfg, tmp_path: Path) -> None:
    seen = _Seen()
    trainer = _run(make_cfg("SCHEDULE.CYCLES", "2", "TEST.EVAL_CYCLES", "1"), seen)
    rows = _rows(tmp_path)
    by_iteration = {row["iteration"]: row for row in rows}
    assert len(by_iteration) == len(rows)
    for end in (i for i in range(trainer.max_iter) if trainer.schedule.at(i).last):
        state, row = trainer.schedule.at(end), by_iteration[end]
        slot = f"{state.phase.dataset}/{state.phase.task}"
        assert (row["cycle"], row["pass"]) == (state.cycle, state.pass_index)
        steps = seen.losses[end - state.steps + 1 : end + 1]
        for name, value in steps[-1].items():
            assert row[f"{slot}/{name}"] == value
            mean = sum(step[name] for step in steps) / len(steps)
            assert row[f"pass/{slot}/{state.phase.mode}/{name}"] == pytest.approx(mean)
        terms = [name for name in steps[-1] if name != "total_loss"]
        assert row[f"{slot}/total_loss"] == pytest.approx(sum(row[f"{slot}/{name}"] for name in terms), rel=1e-5)
        assert {f"{slot}/grad_norm", f"{slot}/step_time", "data_time", "step_time", "memory_mb"} <= set(row)
        consistent = {f"{slot}/loss_{state.phase.task}_consistency_backbone"} & set(row)
        assert bool(consistent) == ("backbone" in state.phase.trainable)
    half = by_iteration[trainer.schedule.cycle_length - 1]
    assert half["student/alpha/cls/auroc"] == 0.5 and "student/beta/cls/auroc" not in half
    assert seen.longest <= PERIOD < trainer.max_iter


def test_tensorboard_holds_the_same(make_cfg: MakeCfg, tmp_path: Path) -> None:
    _run(make_cfg())
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    for row in _rows(tmp_path):
        for name in set(row) - {"iteration"}:
            found = {event.step: event.value for event in events.Scalars(name)}
            assert found[row["iteration"]] == pytest.approx(row[name], rel=1e-5)


def test_a_resumed_run_writes_no_step_twice(make_cfg: MakeCfg, tmp_path: Path) -> None:
    opts = ("SCHEDULE.CYCLES", "2", "SOLVER.CHECKPOINTS_TO_KEEP", "3")
    trainer = _run(make_cfg(*opts))
    before = _rows(tmp_path)
    for name in ("final", f"{trainer.max_iter - 1:07d}"):  # as if killed after the first cycle
        (tmp_path / "run" / f"model_{name}.pth").unlink()
    assert _run(make_cfg(*opts), resume=True).start_iter == trainer.schedule.cycle_length
    iterations = [row["iteration"] for row in _rows(tmp_path)]
    assert iterations == [row["iteration"] for row in before]


def test_rates_are_those_of_the_step_by_component(make_cfg: MakeCfg, tmp_path: Path) -> None:
    cfg = make_cfg("SOLVER.LR_FACTOR.BACKBONE", "0.1", "SOLVER.LR_FACTOR.SEG_HEADS", "3.0")
    trainer = FXTrainer(cfg)
    assert set(LearningRates(trainer.model, trainer.optimizer).now()) == {n for n, _ in trainer.model.named_children()}
    trainer.train()
    for row in _rows(tmp_path)[:-1]:
        whole = row["lr/loc_encoder"]
        assert row["lr/seg_heads"] == pytest.approx(3 * whole) and row["lr/backbone"] == pytest.approx(0.1 * whole)
        assert row["lr"] in [value for name, value in row.items() if name.startswith("lr/")]  # Detectron2's, of a group


def test_what_is_not_defined_is_left_out() -> None:
    assert defined({"a": 1.0, "b": math.nan}) == {"a": 1.0}
