"""Distance between student and teacher outputs of a shared component."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fx_d2.layers.precision import at_least_float32


def consistency_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Element-wise mean squared error between the student's and the teacher's tensor.

    Args:
        student: any shape.
        teacher: same shape and order of positions; must not require grad.

    Raises:
        ValueError: the shapes differ, or the teacher's tensor requires grad.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape")
    if teacher.requires_grad:
        raise ValueError("the teacher's tensor in a consistency loss must not require grad")
    return F.mse_loss(at_least_float32(student), at_least_float32(teacher))
