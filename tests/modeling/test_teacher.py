"""The moving average and what it costs."""

import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.utils._python_dispatch import TorchDispatchMode

from fx_d2.modeling import EMATeacher, FoundationX
from fx_d2.modeling.teacher import Momentum, build_momentum
from fx_d2.structures import FXError, Phase

Make = Any  # the fixture make_batch
RELEASED = Phase("tiny", "seg", ("backbone", "seg_decoder", "seg_heads"))
LOCKED = Phase("tiny", "seg", ("seg_heads",))


@pytest.fixture
def student(tiny_cfg: CfgNode) -> FoundationX:
    torch.manual_seed(0)
    return build_model(tiny_cfg)


def shake(model: torch.nn.Module) -> None:
    """Change every parameter and buffer."""
    with torch.no_grad():
        for x in [*model.parameters(), *model.buffers()]:
            x.add_(torch.randn_like(x) if x.is_floating_point() else 3)


def test_update_is_the_formula_for_parameters_and_float_buffers_and_copies_counters(student: FoundationX) -> None:
    teacher = EMATeacher(student)
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    shake(student)
    kept = {k: v.clone() for k, v in student.state_dict().items()}
    teacher.update(0.8)
    after = teacher.model.state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, kept[name]), "the student must not move"
        if value.is_floating_point():
            assert torch.allclose(after[name], 0.8 * before[name] + 0.2 * value, atol=1e-6), name
        else:
            assert torch.equal(after[name], value) and not torch.equal(value, before[name]), name
    assert any("running_var" in name for name in after) and any("num_batches_tracked" in name for name in after)


class Calls(TorchDispatchMode):
    """Counts the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_an_update_is_two_operators_whatever_the_number_of_tensors(student: FoundationX) -> None:
    teacher = EMATeacher(student)
    with Calls() as calls:
        teacher.update(0.9)
    assert calls.names == ["aten._foreach_lerp_.Scalar", "aten._foreach_copy_.default"]
    assert len(list(student.parameters())) > 100


def test_what_is_frozen_moves_too_until_the_teacher_has_reached_it(student: FoundationX) -> None:
    teacher = EMATeacher(student)
    frozen, there = student.backbone.cls_norm.weight.requires_grad_(False), teacher.model.backbone.cls_norm.weight
    with torch.no_grad():
        frozen.add_(1)
    distances = []
    for _ in range(3):
        teacher.update(0.5)
        distances.append(float((frozen - there).abs().max()))
    assert distances == [0.5, 0.25, 0.125]


def _momenta(updates: int, **keys: Any) -> list[float]:
    momentum = Momentum(**({"schedule": "constant", "start": 0.9, "end": 1.0, "per_step": True} | keys))
    return [momentum.at(n / updates, n) for n in range(updates + 1)]


def test_momentum_over_a_run() -> None:
    assert _momenta(4) == [0.9] * 5
    assert _momenta(4, schedule="cosine", start=0.5) == pytest.approx([0.5, 0.5732233, 0.75, 0.9267767, 1.0])
    rise = _momenta(100, schedule="warmup")
    assert rise[:3] == [0.1, 2 / 11, 3 / 12] and rise[80] == 81 / 90 == 0.9 and rise[81:] == [0.9] * 20
    assert all(a <= b for a, b in itertools.pairwise(rise))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SCHEDULE", "cosinus", "SCHEDULE is 'cosinus': choose one of .*cosine"),
        ("UPDATE", "epoch", "UPDATE is 'epoch': choose one of .*step"),
        ("MOMENTUM", 1.5, r"MOMENTUM is 1\.5"),
        ("MOMENTUM_END", -1.0, r"MOMENTUM_END is -1\.0"),
    ],
)
def test_momenta_that_make_no_sense(tiny_cfg: CfgNode, key: str, value: Any, message: str) -> None:
    tiny_cfg.MODEL.TEACHER[key] = value
    with pytest.raises(FXError, match=message):
        build_momentum(tiny_cfg)


def test_the_reference_s_momentum_is_the_default(tiny_cfg: CfgNode) -> None:
    assert build_momentum(tiny_cfg) == Momentum("constant", 0.8, 1.0, per_step=False)


def test_running_statistics_follow_what_the_student_saw(student: FoundationX, make_batch: Make) -> None:
    teacher = EMATeacher(student)
    for _ in range(3):
        student(make_batch("seg"))
    teacher.update(0.5)
    ours, theirs = (m.seg_decoder.fuse.norm for m in (teacher.model, student))
    assert torch.allclose(ours.running_var, 0.5 + 0.5 * theirs.running_var)
    assert not torch.allclose(ours.running_var, torch.ones(()))
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 3


def test_a_student_without_counters_is_followed() -> None:
    student = torch.nn.Linear(2, 1)
    teacher = EMATeacher(student)
    shake(student)
    teacher.update(0.0)
    assert torch.equal(teacher.model.weight, student.weight)


@pytest.mark.parametrize(("momentum", "follows"), [(1.0, False), (0.0, True)])
def test_extreme_momenta(student: FoundationX, momentum: float, follows: bool) -> None:
    teacher = EMATeacher(student)
    shake(student)
    teacher.update(momentum)
    same = [
        torch.allclose(a, b, atol=1e-6) for a, b in zip(teacher.model.parameters(), student.parameters(), strict=True)
    ]
    assert all(same) if follows else not any(same)


def test_stays_in_evaluation_and_asks_for_no_gradient(student: FoundationX) -> None:
    student.train()
    teacher = EMATeacher(student)
    assert teacher.train() is teacher and teacher.train(True) is teacher
    torch.nn.Sequential(teacher).train()
    assert not any(m.training for m in teacher.modules()) and student.training
    assert not any(p.requires_grad for p in teacher.parameters()) and all(p.requires_grad for p in student.parameters())


def test_shares_no_tensor_with_the_student(student: FoundationX) -> None:
    teacher = EMATeacher(student)
    places = {x.data_ptr() for x in [*student.parameters(), *student.buffers()]}
    assert not places & {x.data_ptr() for x in [*teacher.parameters(), *teacher.buffers()]}


def test_state_dict_round_trip(student: FoundationX) -> None:
    teacher = EMATeacher(student)
    shake(teacher)
    other = EMATeacher(student)
    other.load_state_dict(teacher.state_dict())
    assert all(torch.equal(other.state_dict()[k], v) for k, v in teacher.state_dict().items())
    assert set(teacher.state_dict()) == {f"model.{key}" for key in student.state_dict()}


def test_a_locked_pass_asks_nothing_of_the_teacher(student: FoundationX, make_batch: Make) -> None:
    teacher = EMATeacher(student)
    with mock.patch.object(teacher.model.backbone, "forward", side_effect=AssertionError):
        assert teacher.guide(make_batch("seg"), LOCKED) == {}


def test_without_consistency_the_teacher_does_not_run(tiny_cfg: CfgNode, make_batch: Make) -> None:
    tiny_cfg.MODEL.TEACHER.CONSISTENCY = 0.0
    teacher = EMATeacher(build_model(tiny_cfg))
    with mock.patch.object(teacher.model.backbone, "forward", side_effect=AssertionError):
        assert teacher.guide(make_batch("seg"), RELEASED) == {}


def test_guide_holds_constants_from_its_own_view(student: FoundationX, make_batch: Make) -> None:
    teacher = EMATeacher(student)
    batch = make_batch("seg")
    guide = teacher.guide(batch, RELEASED)
    assert list(guide) == ["backbone", "seg_decoder"] and not any(x.requires_grad for x in guide.values())
    same = [{**x, "image": x["teacher_image"]} for x in batch]
    student.eval()
    want = student.shared_outputs(same, "seg", ["backbone", "seg_decoder"], view="image")
    assert all(torch.allclose(guide[k], want[k], atol=1e-5) for k in guide)
    other = teacher.guide([{k: v for k, v in x.items() if k != "teacher_image"} for x in batch], RELEASED)
    want = student.shared_outputs(batch, "seg", ["backbone", "seg_decoder"], view="image")
    assert all(torch.allclose(other[k], want[k], atol=1e-5) and not torch.equal(other[k], guide[k]) for k in guide)
