import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from fx_d2.engine import FXTrainer, checkpoint, saving
from fx_d2.engine.signals import EXIT_CODE
from fx_d2.structures import FXError

MakeCfg = Callable[..., CfgNode]
SHORT = ("SCHEDULE.ITERS_PER_PASS", "1")  # six iterations a cycle


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.pth*"))


class _At(HookBase):
    """Calls a function before an iteration."""

    def __init__(self, iteration: int, function: Callable[[], object]) -> None:
        self._iteration, self._function = iteration, function

    def before_step(self) -> None:
        if self.trainer.iter == self._iteration:
            self._function()


@pytest.mark.parametrize(("number", "iteration"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 0)])
def test_a_signal_saves_at_the_end_of_its_step_and_resume_goes_on_there(
    make_cfg: MakeCfg, tmp_path: Path, number: int, iteration: int
) -> None:
    evaluated: list[int] = []
    trainer = FXTrainer(make_cfg(*SHORT), lambda models, final: evaluated.append(1) or {})
    trainer.register_hooks([_At(iteration, lambda: os.kill(os.getpid(), number))])
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == EXIT_CODE and not evaluated
    assert signal.getsignal(number) is before
    assert _names(tmp_path / "run") == [f"model_000000{iteration}.pth"]
    again = FXTrainer(make_cfg(*SHORT))
    again.resume_or_load(True)
    assert again.start_iter == iteration + 1


def test_workers_outlive_the_signals_that_stop_the_run(make_cfg: MakeCfg) -> None:
    trainer = FXTrainer(make_cfg(*SHORT, "SCHEDULE.CYCLES", "3", "DATALOADER.NUM_WORKERS", "1"))

    def signal_workers() -> None:
        workers = multiprocessing.active_children()
        assert workers
        for worker in workers:
            os.kill(worker.pid, signal.SIGTERM)
            os.kill(worker.pid, signal.SIGUSR1)

    trainer.register_hooks([_At(2, signal_workers)])
    trainer.train()
    assert trainer.iter == trainer.max_iter


def test_steps_inside_a_pass_and_every_nth_cycle_are_kept(make_cfg: MakeCfg, tmp_path: Path) -> None:
    opts = ("SCHEDULE.CYCLES", "4", "SOLVER.CHECKPOINT_STEPS", "4", "SOLVER.CHECKPOINT_KEEP_CYCLES", "2")
    FXTrainer(make_cfg(*SHORT, *opts, "SOLVER.CHECKPOINTS_TO_KEEP", "2")).train()
    assert _names(tmp_path / "run") == [f"model_{n}.pth" for n in ("0000011", "0000019", "0000023", "final")]
    content = torch.load(tmp_path / "run" / "model_0000019.pth", weights_only=True)
    assert content["position"] == {"cycle": 3, "pass": 1, "step": 0, "phase": "alpha/loc/lock"}


def test_when_a_save_is_due(make_cfg: MakeCfg) -> None:
    opts = ("SOLVER.CHECKPOINT_CYCLES", "2", "SOLVER.CHECKPOINT_STEPS", "5", "SOLVER.CHECKPOINT_MINUTES", "1.0")
    hook = saving.CheckpointHook()
    hook.trainer = SimpleNamespace(cfg=make_cfg(*opts), schedule=SimpleNamespace(cycle_length=6))
    hook._last = time.monotonic() - 30
    assert [done for done in range(1, 25) if hook._due(done)] == [5, 10, 12, 15, 20, 24]
    hook._last = time.monotonic() - 61
    assert hook._due(1)


def test_minutes(make_cfg: MakeCfg, tmp_path: Path) -> None:
    opts = ("SOLVER.CHECKPOINT_MINUTES", "1e-9", "SOLVER.CHECKPOINTS_TO_KEEP", "9")
    FXTrainer(make_cfg(*SHORT, *opts)).train()
    assert len(_names(tmp_path / "run")) == 7


def test_a_full_disk_in_between_does_not_stop_the_run_but_at_the_end_it_must(
    make_cfg: MakeCfg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = FXTrainer(make_cfg(*SHORT, "SOLVER.CHECKPOINT_STEPS", "2"))
    real, full = checkpoint.write, [1, 5]

    def write(content: dict, path: Path) -> None:
        if content["iteration"] in full:
            raise FXError("no space left")
        real(content, path)

    monkeypatch.setattr(checkpoint, "write", write)
    with caplog.at_level(logging.ERROR), pytest.raises(FXError, match="no space left"):
        trainer.train()
    assert "training continues" in caplog.text
    assert _names(tmp_path / "run") == ["model_0000003.pth"]


def test_a_run_that_was_killed_after_its_last_checkpoint_still_gets_its_final_one(
    make_cfg: MakeCfg, tmp_path: Path
) -> None:
    FXTrainer(make_cfg(*SHORT)).train()
    (tmp_path / "run" / "model_final.pth").unlink()
    again = FXTrainer(make_cfg(*SHORT))
    again.resume_or_load(True)
    again.train()
    assert _names(tmp_path / "run") == ["model_0000005.pth", "model_final.pth"]
    assert (tmp_path / "run" / "model_final.pth").samefile(tmp_path / "run" / "model_0000005.pth")


def test_the_best_of_each_pattern_is_kept_with_its_score(make_cfg: MakeCfg, tmp_path: Path) -> None:
    scores = iter([(0.5, 0.9), (0.7, float("nan")), (0.6, 0.3)])

    def evaluate(models: object, final: bool) -> dict[str, float]:
        a, b = next(scores)
        return {"student/alpha/cls/auroc": a, "student/beta/cls/auroc": a + 0.2, "student/alpha/loc/AP40": b}

    opts = ("SCHEDULE.CYCLES", "3", "TEST.EVAL_CYCLES", "1", "SOLVER.CHECKPOINTS_TO_KEEP", "1")
    patterns = ("SOLVER.CHECKPOINT_BEST", "['student/*/cls/auroc', 'student/*/loc/AP40']")
    cfg = make_cfg(*SHORT, *opts, *patterns)
    FXTrainer(cfg, evaluate).train()
    assert _names(tmp_path / "run") == ["model_0000017.pth", "model_best_student_cls_auroc.pth",
                                        "model_best_student_loc_AP40.pth", "model_final.pth"]  # fmt: skip
    auroc = torch.load(tmp_path / "run" / "model_best_student_cls_auroc.pth", weights_only=True)
    assert auroc["iteration"] == 11 and auroc["evaluated"] == 12
    assert auroc["best"]["student/*/cls/auroc"] == {"value": pytest.approx(0.8), "iteration": 11}
    final = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert final["best"] == auroc["best"] and final["best"]["student/*/loc/AP40"]["iteration"] == 5
    again = FXTrainer(cfg, evaluate)
    again.resume_or_load(True, look_only=True)
    assert again.saver.best == final["best"] and again.evaluated == final["evaluated"] == 12


def test_a_score_that_is_no_better_saves_nothing(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "link", lambda *names: None)
    saver = FXTrainer(make_cfg("SOLVER.CHECKPOINT_BEST", "['student/*']")).saver
    with mock.patch.object(saver, "save") as save:
        for done, value in enumerate((0.5, 0.4, 0.5, 0.6), start=1):
            saver.keep_best({"student/a": value}, done)
    assert [call.args for call in save.call_args_list] == [(1,), (4,)]


def test_a_pattern_that_matches_nothing_is_named(make_cfg: MakeCfg) -> None:
    trainer = FXTrainer(make_cfg(*SHORT, "SOLVER.CHECKPOINT_BEST", "['x/*']"), lambda models, final: {"student/a": 0.1})
    with pytest.raises(FXError, match=r"CHECKPOINT_BEST 'x/\*' matches no metric"):
        trainer.train()


def test_an_evaluation_that_was_interrupted_is_made_up_for(make_cfg: MakeCfg) -> None:
    opts = (*SHORT, "SCHEDULE.CYCLES", "2", "TEST.EVAL_CYCLES", "1")

    def die(models: object, final: bool) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FXTrainer(make_cfg(*opts), die).train()
    seen: list[int] = []
    again = FXTrainer(make_cfg(*opts), lambda models, final: seen.append(again.iter) or {})
    again.resume_or_load(True)
    again.train()
    assert seen == [6, 12]
