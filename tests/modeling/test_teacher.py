"""The moving average and what it costs."""

from typing import Any
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.modeling import EMATeacher, FoundationX
from fx_d2.structures import Phase

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
    teacher = EMATeacher(student, 0.8)
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    shake(student)
    kept = {k: v.clone() for k, v in student.state_dict().items()}
    teacher.update(student)
    after = teacher.model.state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, kept[name]), "the student must not move"
        if value.is_floating_point():
            assert torch.allclose(after[name], 0.8 * before[name] + 0.2 * value, atol=1e-6), name
        else:
            assert torch.equal(after[name], value) and not torch.equal(value, before[name]), name
    assert any("running_var" in name for name in after) and any("num_batches_tracked" in name for name in after)


def test_running_statistics_follow_what_the_student_saw(student: FoundationX, make_batch: Make) -> None:
    teacher = EMATeacher(student, 0.5)
    for _ in range(3):
        student(make_batch("seg"))
    teacher.update(student)
    ours, theirs = (m.seg_decoder.fuse.norm for m in (teacher.model, student))
    assert torch.allclose(ours.running_var, 0.5 + 0.5 * theirs.running_var)
    assert not torch.allclose(ours.running_var, torch.ones(()))
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 3


@pytest.mark.parametrize(("momentum", "follows"), [(1.0, False), (0.0, True)])
def test_extreme_momenta(student: FoundationX, momentum: float, follows: bool) -> None:
    teacher = EMATeacher(student, momentum)
    shake(student)
    teacher.update(student)
    same = [
        torch.allclose(a, b, atol=1e-6) for a, b in zip(teacher.model.parameters(), student.parameters(), strict=True)
    ]
    assert all(same) if follows else not any(same)


def test_stays_in_evaluation_and_asks_for_no_gradient(student: FoundationX) -> None:
    student.train()
    teacher = EMATeacher(student, 0.8)
    assert teacher.train() is teacher and teacher.train(True) is teacher
    torch.nn.Sequential(teacher).train()
    assert not any(m.training for m in teacher.modules()) and student.training
    assert not any(p.requires_grad for p in teacher.parameters()) and all(p.requires_grad for p in student.parameters())


def test_shares_no_tensor_with_the_student(student: FoundationX) -> None:
    teacher = EMATeacher(student, 0.8)
    places = {x.data_ptr() for x in [*student.parameters(), *student.buffers()]}
    assert not places & {x.data_ptr() for x in [*teacher.parameters(), *teacher.buffers()]}


def test_state_dict_round_trip(student: FoundationX) -> None:
    teacher = EMATeacher(student, 0.8)
    shake(teacher)
    other = EMATeacher(student, 0.8)
    other.load_state_dict(teacher.state_dict())
    assert all(torch.equal(other.state_dict()[k], v) for k, v in teacher.state_dict().items())
    assert set(teacher.state_dict()) == {f"model.{key}" for key in student.state_dict()}


def test_a_locked_pass_asks_nothing_of_the_teacher(student: FoundationX, make_batch: Make) -> None:
    teacher = EMATeacher(student, 0.8)
    with mock.patch.object(teacher.model.backbone, "forward", side_effect=AssertionError):
        assert teacher.guide(make_batch("seg"), LOCKED) == {}


def test_without_consistency_the_teacher_does_not_run(tiny_cfg: CfgNode, make_batch: Make) -> None:
    tiny_cfg.MODEL.TEACHER.CONSISTENCY = 0.0
    teacher = EMATeacher(build_model(tiny_cfg), 0.8)
    with mock.patch.object(teacher.model.backbone, "forward", side_effect=AssertionError):
        assert teacher.guide(make_batch("seg"), RELEASED) == {}


def test_guide_holds_constants_from_its_own_view(student: FoundationX, make_batch: Make) -> None:
    teacher = EMATeacher(student, 0.8)
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
