"""Distance between what student and teacher compute in a shared part."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fx_d2.layers.precision import at_least_float32


def consistency_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between a student's tensor and the teacher's, element by element.

    Args:
        student: any shape, with a graph.
        teacher: the same shape and position order, without a graph.

    Raises:
        ValueError: the shapes differ, or the teacher's tensor would receive a gradient.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} cannot be compared")
    if teacher.requires_grad:
        raise ValueError("the teacher's side of a consistency loss must be without a graph")
    return F.mse_loss(at_least_float32(student), at_least_float32(teacher))
