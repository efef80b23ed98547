import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model

from fx_d2.engine import FXTrainer
from fx_d2.engine.trainer import build_schedule
from fx_d2.structures import FXError

MakeCfg = Callable[..., CfgNode]

CLS = {"task": "cls", "share": 1.0, "train": ["backbone", "cls_heads"]}
LOC = {"task": "loc", "share": 1.0, "train": ["backbone", "loc_encoder", "loc_decoders"]}


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
    FXTrainer(make_cfg(*opts)).resume_or_load(True, look_only=True)
    assert last.is_file()  # set aside by the run alone
    again = _train(make_cfg(*opts, "DATALOADER.NUM_WORKERS", "1"), resume=True)
    assert again.start_iter == again.schedule.cycle_length
    assert _equal(whole.model, again.model) and _equal(whole.teacher, again.teacher)


def test_a_resumed_run_has_the_orders_and_the_rates_of_the_seed_it_was_begun_with(make_cfg: MakeCfg) -> None:
    opts = ("SEED", "-1", "SCHEDULE.ORDER", "shuffled", "SCHEDULE.CYCLES", "3", "SCHEDULE.ITERS_PER_PASS", "1")
    cfg = make_cfg(*opts, "SCHEDULE.BATCH_SIZE.LOC", "2", "SOLVER.REFERENCE_BATCH", "4")
    with mock.patch("fx_d2.engine.trainer.comm.shared_random_seed", side_effect=[1, 2]):
        whole = _train(cfg)
        again = FXTrainer(cfg)
    (Path(cfg.OUTPUT_DIR) / "model_0000017.pth").unlink()
    assert again.schedule.cycle(2).phases != whole.schedule.cycle(2).phases
    again.resume_or_load(True)
    again.train()
    assert again.start_iter == 12 and again.schedule.cycle(2).phases == whole.schedule.cycle(2).phases
    assert _equal(whole.model, again.model) and _equal(whole.teacher, again.teacher)


def test_every_step_draws_anew_and_another_seed_draws_otherwise(make_cfg: MakeCfg) -> None:
    seeds: list[int] = []

    class Watch(HookBase):
        def after_step(self) -> None:
            seeds.append(torch.initial_seed())

    for seed in ("3", "4"):
        trainer = FXTrainer(make_cfg("SEED", seed, "SCHEDULE.ITERS_PER_PASS", "1"))
        trainer.register_hooks([Watch()])
        trainer.train()
    assert len(set(seeds)) == len(seeds) == 12


def test_the_first_weights_follow_from_the_seed_alone(make_cfg: MakeCfg) -> None:
    """The processes of a run draw them each for itself."""
    first = FXTrainer(make_cfg()).model
    torch.manual_seed(99)
    assert _equal(first, FXTrainer(make_cfg()).model)
    assert not _equal(first, FXTrainer(make_cfg("SEED", "4")).model)


def test_settings_that_the_optimizer_could_not_load_are_named(make_cfg: MakeCfg) -> None:
    opts = ("SCHEDULE.ITERS_PER_PASS", "1")
    _train(make_cfg(*opts))
    for key, value in (("SOLVER.LAYER_DECAY", "0.7"), ("SOLVER.WEIGHT_DECAY_NORM", "0.1")):
        with pytest.raises(FXError, match=rf"the run of .* had other settings: {key} was"):
            FXTrainer(make_cfg(*opts, key, value)).resume_or_load(True)


HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_one_training_s_until_it_ends(make_cfg: MakeCfg, tmp_path: Path) -> None:
    """From Python as from the command."""

    def other() -> subprocess.Popen[str]:
        lock = str(tmp_path / "run" / ".lock")
        return subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=-1, stdout=-1, stderr=-1, text=True)

    trainer = FXTrainer(make_cfg("SCHEDULE.ITERS_PER_PASS", "1"))
    with other() as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FXError, match="another training run is active there"):
            trainer.resume_or_load(True)
        trainer.resume_or_load(True, look_only=True)
        process.communicate("")
    trainer.resume_or_load(True)
    with other() as process:
        assert "BlockingIOError" in process.communicate("")[1]
    trainer.train()
    with other() as process:
        assert process.communicate("")[0] == "held\n"


def test_resume_without_a_checkpoint_begins_and_without_resume_nothing_is_overwritten(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SCHEDULE.ITERS_PER_PASS", "1")
    assert _train(cfg, resume=True).start_iter == 0
    with pytest.raises(FXError, match=r"holds the checkpoints of a run, the last is model_0000005\.pth.*--resume"):
        _train(cfg)


def test_the_teacher_begins_where_the_student_does(make_cfg: MakeCfg, tmp_path: Path) -> None:
    """And what a killed writer left is removed, but not by who only looks."""
    path, left = tmp_path / "x.pth", tmp_path / "run" / "model_0000009.pth.tmp"
    torch.save({"model": build_model(make_cfg()).state_dict()}, path)
    trainer = FXTrainer(make_cfg("MODEL.WEIGHTS", str(path)))
    left.touch()
    trainer.resume_or_load(True, look_only=True)
    stored = torch.load(path)["model"]
    for model in trainer.models().values():
        assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    assert left.exists()
    trainer.resume_or_load(True)
    trainer._held.close()
    assert not left.exists()


@pytest.mark.parametrize("off", [("MODEL.TEACHER.CONSISTENCY", "0.0"), ("MODEL.TEACHER.ENABLED", "False")])
def test_without_consistency_there_is_no_teacher_and_no_copy(make_cfg: MakeCfg, off: tuple[str, str]) -> None:
    with mock.patch("fx_d2.engine.trainer.EMATeacher", side_effect=AssertionError):
        trainer = _train(make_cfg(*off, "MODEL.TEACHER.UPDATE", "step", "SCHEDULE.ITERS_PER_PASS", "1"))
    assert trainer.teacher is None and set(trainer.models()) == {"student"}


@pytest.mark.parametrize(
    ("opts", "want"),
    [
        ((), [0.8] * 12),
        (("MODEL.TEACHER.SCHEDULE", "warmup"), [min(0.8, (1 + n) / (10 + n)) for n in range(12)]),
        (
            ("MODEL.TEACHER.UPDATE", "step", "MODEL.TEACHER.SCHEDULE", "cosine", "MODEL.TEACHER.MOMENTUM", "0.5"),
            [1 - 0.25 * (1 + math.cos(math.pi * n / 32)) for n in range(32)],
        ),
    ],
)
def test_the_teacher_moves_after_each_pass_or_each_step(make_cfg: MakeCfg, opts: tuple[str], want: list[float]) -> None:
    trainer = FXTrainer(make_cfg("SCHEDULE.CYCLES", "2", *opts))
    assert trainer.schedule.total == 32 and len(trainer.schedule.phases) == 6
    with mock.patch.object(trainer.teacher, "update") as update:
        trainer.train()
    assert [call.args[0] for call in update.call_args_list] == pytest.approx(want)


def test_the_teacher_runs_only_where_a_shared_part_learns(make_cfg: MakeCfg) -> None:
    trainer, ran = FXTrainer(make_cfg("SCHEDULE.ITERS_PER_PASS", "1", "SOLVER.MICRO_BATCH.LOC", "2")), []
    for part in ("backbone", "loc_encoder", "seg_decoder"):
        module = getattr(trainer.teacher.model, part)
        module.register_forward_hook(lambda *_, part=part: ran.append((trainer.iter, part)))
    trainer.train()
    modes = [str(trainer.schedule.at(i).phase).partition("/")[2] for i in range(6)]
    assert modes == ["cls/release", "loc/lock", "loc/release", "seg/lock", "seg/release", "cls/release"]
    twice = [(2, "backbone"), (2, "loc_encoder")] * 2
    assert ran == [(0, "backbone"), *twice, (4, "backbone"), (4, "seg_decoder"), (5, "backbone")]


def test_evaluation_is_called_with_both_models_where_asked(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("TEST.EVAL_CYCLES", "1", "SCHEDULE.CYCLES", "2", "SCHEDULE.ITERS_PER_PASS", "1")
    calls: list[tuple[str, ...]] = []
    trainer = FXTrainer(cfg, lambda models, final: calls.append(tuple(models)) or {"student/alpha/cls/auroc": 0.5})
    trainer.train()
    assert calls == [("student", "teacher")] * 2
    assert set(FXTrainer(make_cfg("TEST.MODELS", "['teacher']")).models()) == {"teacher"}


def test_a_run_that_breaks_off_in_its_last_step_is_not_evaluated(make_cfg: MakeCfg) -> None:
    trainer = FXTrainer(make_cfg("SCHEDULE.ITERS_PER_PASS", "1"), lambda models, final: pytest.fail("evaluated"))
    weight = trainer.model.cls_heads["beta"].weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FXError, match="the gradient is not finite at iteration 5"):
        trainer.train()


def test_metrics_are_written_per_dataset_and_task(make_cfg: MakeCfg, tmp_path: Path) -> None:
    losses = _train(make_cfg()).step_losses
    assert len(losses) == 3 and losses.pop("total_loss") == pytest.approx(sum(losses.values()))
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


def test_boxes_that_are_not_finite_stop_with_dataset_phase_and_images(make_cfg: MakeCfg) -> None:
    trainer = FXTrainer(make_cfg("SCHEDULE.STRATEGY", str([LOC])))
    with torch.no_grad():
        trainer.model.loc_decoders["alpha"].box_head[0].bias.fill_(float("nan"))
    with pytest.raises(FXError, match=r"at iteration 0 in alpha/loc/release.*train_\d\.png"):
        trainer.train()


def test_a_gradient_that_is_not_finite_stops_before_the_weights(make_cfg: MakeCfg) -> None:
    trainer = FXTrainer(make_cfg())
    weight = trainer.model.backbone.cls_norm.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    before = weight.clone()
    with pytest.raises(FXError, match=r"the gradient is not finite at iteration 0 in alpha/cls/release.*train_\d\.png"):
        trainer.train()
    assert torch.equal(before, weight)


def test_gradients_are_clipped_by_task(make_cfg: MakeCfg) -> None:
    """As the step finds them: at most the limit in localization, as they are elsewhere."""
    cfg = make_cfg("SOLVER.CLIP_NORM.LOC", "0.0001", "SCHEDULE.ITERS_PER_PASS", "1")
    trainer = FXTrainer(cfg)
    norms: dict[str, list[float]] = {}

    def look(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        task = trainer.schedule.at(trainer.iter).phase.task
        norms.setdefault(task, []).append(float(torch.nn.utils.get_total_norm(gradients)))

    trainer.optimizer.register_step_pre_hook(look)
    trainer.train()
    assert norms["loc"] == pytest.approx([0.0001, 0.0001], rel=0.01)
    assert min(norms["cls"] + norms["seg"]) > 0.001


def test_a_step_that_overflows_is_left_out_and_the_rate_and_the_teacher_go_on(make_cfg: MakeCfg) -> None:
    """float16's loss scale, here with a float32 gradient made infinite in the first step."""
    cfg = make_cfg("SCHEDULE.ITERS_PER_PASS", "1", "MODEL.TEACHER.UPDATE", "step", "SOLVER.MICRO_BATCH.LOC", "2")
    trainer = FXTrainer(cfg)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1)
    weights, rates, scales = [], [], []
    parameter = trainer.model.backbone.cls_norm.weight
    parameter.register_hook(lambda gradient: gradient / min(trainer.iter, 1))

    class Watch(HookBase):
        def after_step(self) -> None:
            weights.append(parameter.detach().clone())
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            scales.append(trainer.storage.latest()["loss_scale"][0])

    before = parameter.detach().clone()
    trainer.register_hooks([Watch()])
    trainer.train()
    assert torch.equal(before, weights[0]) and not torch.equal(before, weights[-1])
    assert scales == [128.0 * 2**k for k in range(6)]
    plain = FXTrainer(cfg)
    assert rates == [plain.lr_schedule.base_lrs[0] * plain.lr_schedule._multiplier((k + 1) / 6) for k in range(6)]


def test_a_batch_in_parts_trains_as_the_whole_does(make_cfg: MakeCfg) -> None:
    """Without draws in the model, weights after a cycle agree to rounding where no loss is of a part."""
    still = ("MODEL.TIMM.DROP_PATH", "0.0", "MODEL.SEG.DROPOUT", "0.0", "MODEL.LOC.DN_NUMBER", "0")
    opts = (*still, "SOLVER.OPTIMIZER", "sgd", "SCHEDULE.STRATEGY", str([CLS, LOC]))
    parts = ("SOLVER.MICRO_BATCH.CLS", "1", "SOLVER.MICRO_BATCH.LOC", "3")
    with tempfile.TemporaryDirectory() as folder:
        whole = _train(make_cfg(*opts, "OUTPUT_DIR", folder))
    divided, calls = FXTrainer(make_cfg(*opts, *parts)), []
    divided.model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    divided.train()
    assert calls == [1] * 12 + [2, 2] * 3 + [1] * 12
    theirs = divided.model.state_dict()
    differences = [(v - theirs[k]).abs().max() for k, v in whole.model.state_dict().items() if v.is_floating_point()]
    assert max(differences) < 1e-5
    assert not _equal(whole.model, FXTrainer(make_cfg(*opts, *parts)).model)


def test_float16_needs_a_gpu(make_cfg: MakeCfg) -> None:
    with pytest.raises(FXError, match="float16 needs a GPU"):
        FXTrainer(make_cfg("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"))


SMALL = [x for task, most in (("CLS", "3"), ("LOC", "2"), ("SEG", "2")) for x in (f"SOLVER.MICRO_BATCH.{task}", most)]
SMALL += ["MODEL.LOC.GRAD_CHECKPOINTING", "True", "MODEL.TIMM.GRAD_CHECKPOINTING", "True"]


@pytest.mark.parametrize("opts", [(), SMALL], ids=["as it is", "with little memory"])
def test_bfloat16_autocast_trains(make_cfg: MakeCfg, opts: tuple[str, ...]) -> None:
    trainer = _train(make_cfg("SOLVER.AMP.ENABLED", "True", "SCHEDULE.ITERS_PER_PASS", "1", *opts))
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in trainer.model.parameters())
