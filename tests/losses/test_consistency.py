"""Mean squared distance between student and teacher."""

import pytest
import torch

from fx_d2.losses import consistency_loss


def test_value_and_gradient_of_the_student() -> None:
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0], [3.0, 5.0]])
    loss = consistency_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx((4 + 1) / 4)
    assert torch.allclose(student.grad, (student - teacher).detach() / 2)


def test_a_teacher_with_a_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="must not require grad"):
        consistency_loss(torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True))


def test_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"student \(2, 3\) and teacher \(1, 3\)"):
        consistency_loss(torch.zeros(2, 3, requires_grad=True), torch.zeros(1, 3))


def test_half_precision_is_compared_in_float32() -> None:
    student, teacher = torch.full((2,), 300.0, dtype=torch.bfloat16), torch.full((2,), 1.0, dtype=torch.bfloat16)
    loss = consistency_loss(student, teacher)
    assert loss.dtype == torch.float32 and loss.item() == (student.float()[0].item() - 1) ** 2
