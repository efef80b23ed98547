import json
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode

from fx_d2.engine import FXTrainer
from fx_d2.engine.evaluations import FILE_NAME, EvaluationLog

MakeCfg = Callable[..., CfgNode]
NAN = float("nan")


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]


def test_every_pass_is_evaluated_where_the_config_says(make_cfg: MakeCfg, tmp_path: Path) -> None:
    finals: list[bool] = []

    def evaluate(models: object, final: bool) -> dict[str, float]:
        finals.append(final)
        return {"student/alpha/cls/auroc": NAN if final else float(len(finals))}

    opts = ("SCHEDULE.CYCLES", "2", "SCHEDULE.ITERS_PER_PASS", "1")
    FXTrainer(make_cfg(*opts, "TEST.EVAL_PASSES", "1"), evaluate).train()
    lines = read(tmp_path / "run")
    assert [line["iteration"] for line in lines] == list(range(1, 13)) and finals == [False] * 11 + [True]
    assert [(line["cycle"], line["pass"]) for line in lines] == [(c, p) for c in range(2) for p in range(6)]
    assert (lines[1]["dataset"], lines[1]["task"], lines[1]["mode"]) == ("alpha", "loc", "lock")
    assert lines[0]["metrics"] == {"student/alpha/cls/auroc": 1.0}
    assert lines[-1]["metrics"] == {"student/alpha/cls/auroc": None}
    finals.clear()
    FXTrainer(make_cfg(*opts, "TEST.EVAL_PASSES", "4", "TEST.EVAL_CYCLES", "1", "OUTPUT_DIR", str(tmp_path / "b")),
              evaluate).train()  # fmt: skip
    assert [line["iteration"] for line in read(tmp_path / "b")] == [4, 6, 8, 12]


def test_a_resumed_run_writes_no_line_twice(make_cfg: MakeCfg, tmp_path: Path) -> None:
    cfg = make_cfg("SCHEDULE.CYCLES", "2", "SCHEDULE.ITERS_PER_PASS", "1", "TEST.EVAL_PASSES", "1",
                   "SOLVER.CHECKPOINT_STEPS", "4")  # fmt: skip
    seen = []

    def die(models: object, final: bool) -> dict[str, float]:
        seen.append(1)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return {"a": 0.0}

    trainer = FXTrainer(cfg, die)
    try:
        trainer.train()
    except KeyboardInterrupt:
        pass
    with (tmp_path / "run" / FILE_NAME).open("a") as stream:
        stream.write('{"iteration": 6, "cy')  # a line cut off by a kill
    again = FXTrainer(cfg, lambda models, final: {"a": 1.0})
    again.resume_or_load(True)
    again.train()
    lines = read(tmp_path / "run")
    assert [line["iteration"] for line in lines] == list(range(1, 13))
    assert [line["metrics"]["a"] for line in lines][4:] == [0.0, *[1.0] * 7]


def test_rewinding_what_is_not_there(tmp_path: Path) -> None:
    EvaluationLog(tmp_path).rewind(3)
    assert list(tmp_path.iterdir()) == []
