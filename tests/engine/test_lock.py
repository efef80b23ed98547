import copy
from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from torch import Tensor

from fx_d2.data import build_train_data
from fx_d2.engine.accumulation import add_gradients, split_batch
from fx_d2.engine.lock import (
    apply_phase,
    describe_parameters,
    parameters_of,
    running_statistics,
    short_count,
    trainable_modules,
)
from fx_d2.engine.optimizer import build_optimizer
from fx_d2.engine.schedule import build_cycle
from fx_d2.engine.trainer import FXTrainer, build_schedule
from fx_d2.modeling import EMATeacher
from fx_d2.structures import Phase, specs_of

MakeCfg = Callable[..., CfgNode]


def _phases(cfg: CfgNode) -> tuple[Phase, ...]:
    return build_cycle(specs_of(cfg.DATASETS.TRAIN), cfg.SCHEDULE.STRATEGY)


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="adamw"),
        pytest.param(
            ("SOLVER.OPTIMIZER", "sgd", "SOLVER.MOMENTUM", "0.9", "SOLVER.LAYER_DECAY", "0.7"), id="sgd_by_depth"
        ),
        pytest.param(
            ("SOLVER.MICRO_BATCH.CLS", "1", "SOLVER.MICRO_BATCH.LOC", "1", "MODEL.LOC.HIDDEN_DIM", "64"), id="parts"
        ),
    ],
)
def test_frozen_means_bit_equal_weights_buffers_and_optimizer_state(
    make_cfg: MakeCfg, options: tuple[str, ...], index: int
) -> None:
    """With a teacher that guides and follows each step."""
    cfg = make_cfg(*options)
    model = build_model(cfg)
    teacher = EMATeacher(model)
    optimizer = build_optimizer(cfg, model)
    scaler = torch.amp.GradScaler(enabled=False)
    data = build_train_data(cfg)
    schedule = build_schedule(cfg, data.sizes)
    starts = [sum(schedule.steps[:i]) for i in range(len(schedule.steps))]

    def step(phase_index: int) -> None:
        phase = schedule.phases[phase_index]
        apply_phase(model, phase)
        optimizer.zero_grad(set_to_none=True)
        batch = next(iter(data.loader(schedule, starts[phase_index], 0, 1, 1, seed=3)))
        parts = split_batch(batch, cfg.SOLVER.MICRO_BATCH[phase.task.upper()], model.device)
        add_gradients(model, parts, lambda part: model(part, teacher.guide(part, phase)), scaler)
        optimizer.step()
        teacher.update(0.5)

    for warm in range(5):  # every parameter has a moment by now, so a stray weight decay or moment would show
        step(warm)
    before, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    step(index)
    learning = {id(p) for m in trainable_modules(model, schedule.phases[index]) for p in m.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    free = {names[i] for i in learning}
    prefixes = {name.rsplit(".", 1)[0] for name in free}  # running statistics live beside weights that learn
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved and all(key in free or key.rsplit(".", 1)[0] in prefixes for key in moved)
    order = [p for group in optimizer.param_groups for p in group["params"]]
    for number, old in moments.items():
        if id(order[number]) not in learning:
            new = optimizer.state_dict()["state"][number]
            assert all(torch.equal(torch.as_tensor(new[k]), torch.as_tensor(old[k])) for k in old)


class Watch(HookBase):
    """Names, at the end of each pass, the weights, buffers and optimizer states that have changed since it began."""

    def __init__(self) -> None:
        self.changed: list[tuple[Phase, set[str]]] = []

    def _state(self) -> dict[str, Tensor]:
        names = {id(p): name for name, p in self.trainer.model.named_parameters()}
        found = {name: value.clone() for name, value in self.trainer.model.state_dict().items()}
        for parameter, state in self.trainer.optimizer.state.items():
            name = names[id(parameter)]
            found |= {
                f"{name}|{key}": torch.as_tensor(value).clone() for key, value in state.items() if value is not None
            }
        return found

    def before_step(self) -> None:
        if self.trainer.schedule.at(self.trainer.iter).first:
            self._before = self._state()

    def after_step(self) -> None:
        state = self.trainer.schedule.at(self.trainer.iter)
        if state.last:
            after = self._state()
            moved = {k for k, x in after.items() if k not in self._before or not torch.equal(x, self._before[k])}
            self.changed.append((state.phase, {key.split(".", 1)[0] for key in moved}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_moves_exactly_what_each_pass_trains(make_cfg: MakeCfg, optimizer: str) -> None:
    """With all that touches weights: rates by depth, divided batches, decay, a teacher that moves at each step."""
    words = f"SOLVER.OPTIMIZER {optimizer} SOLVER.LAYER_DECAY 0.7 SOLVER.MICRO_BATCH.LOC 2 SOLVER.MICRO_BATCH.SEG 2"
    words += " SOLVER.WEIGHT_DECAY 0.1 MODEL.TEACHER.UPDATE step MODEL.TEACHER.SCHEDULE cosine SCHEDULE.CYCLES 2"
    trainer, watch = FXTrainer(make_cfg(*words.split())), Watch()
    trainer.register_hooks([watch])
    trainer.train()
    assert len(watch.changed) == 2 * len(trainer.schedule.phases)
    for phase, components in watch.changed:
        assert components == set(phase.trainable), phase


def test_only_what_the_phase_trains_is_in_training_mode(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    model = build_model(cfg)
    for phase in _phases(cfg):
        apply_phase(model, phase)
        learning = {m for part in trainable_modules(model, phase) for m in part.modules()}
        assert {m for m in model.modules() if m.training} == learning | {model}
        assert {p for p in model.parameters() if p.requires_grad} == {p for m in learning for p in m.parameters()}


def test_counts_cover_exactly_what_takes_part(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    model = build_model(cfg)
    for phase in _phases(cfg):
        apply_phase(model, phase)
        learning, frozen = parameters_of(model, phase)
        assert sum(learning.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert tuple(learning) == phase.trainable and tuple(frozen) == phase.frozen


def test_frozen_stages_learn_in_no_phase(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("MODEL.TIMM.FROZEN_STAGES", "2")
    model = build_model(cfg)
    frozen = [model.backbone.trunk.patch_embed, model.backbone.trunk.layers_0, model.backbone.trunk.layers_1]
    for phase in _phases(cfg):
        apply_phase(model, phase)
        assert not any(m.training for part in frozen for m in part.modules())
        assert not any(p.requires_grad for part in frozen for p in part.parameters())
        released = "backbone" in phase.trainable
        assert all(p.requires_grad == released for p in model.backbone.trunk.layers_2.parameters())
        learning, counted = parameters_of(model, phase)
        assert sum(learning.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert counted["backbone"] >= sum(p.numel() for part in frozen for p in part.parameters())


def test_counts_as_people_read_them() -> None:
    counts = [0, 999, 1000, 14_350, 999_949, 999_951, 86_741_176, 1_234_567_890]
    assert list(map(short_count, counts)) == ["0", "999", "1.0K", "14.3K", "999.9K", "1.0M", "86.7M", "1.2G"]
    assert describe_parameters({"backbone": 86_741_176, "cls_heads": 258}) == "backbone 86.7M, cls_heads 258"
    assert describe_parameters({}) == "-"


def test_running_statistics_are_those_of_the_norms_that_learn(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    model = build_model(cfg)
    found = {}
    for phase in _phases(cfg):
        apply_phase(model, phase)
        names = {id(buffer): name for name, buffer in model.named_buffers()}
        found[f"{phase.task}/{phase.mode}"] = [names[id(x)] for x in running_statistics(model)]
    released = found.pop("seg/release")
    assert not any(found.values())
    assert len(released) == 2 * 4  # of two poolings, the bottleneck and the fusion
    assert all(name.startswith("seg_decoder") and name.endswith(("running_mean", "running_var")) for name in released)
