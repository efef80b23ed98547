"""The teacher: an exponential moving average of the student, always in evaluation, never with a graph."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fx_d2.modeling.meta_arch import FoundationX, Samples
from fx_d2.structures import Phase


class EMATeacher(nn.Module):
    """Follows a student; heads and decoders follow too, so that the teacher can be evaluated and exported.

    Args:
        student: copied once.
        momentum: m in teacher <- m * teacher + (1 - m) * student.
    """

    def __init__(self, student: FoundationX, momentum: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.momentum = momentum
        self.train(False)

    def train(self, mode: bool = True) -> EMATeacher:
        """Stays in evaluation whatever is asked."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def update(self, student: FoundationX) -> None:
        """One step of the moving average over parameters and buffers; integer buffers are copied."""
        ours, theirs = _tensors(self.model), _tensors(student)
        floating = [t.is_floating_point() for t in ours]
        mine = [t for t, keep in zip(ours, floating, strict=True) if keep]
        source = [t for t, keep in zip(theirs, floating, strict=True) if keep]
        torch._foreach_lerp_(mine, source, 1 - self.momentum)
        for target, value, keep in zip(ours, theirs, floating, strict=True):
            if not keep:
                target.copy_(value)

    @torch.no_grad()
    def guide(self, batch: Samples, phase: Phase) -> dict[str, Tensor]:
        """The teacher's side of the consistency losses: one tensor per shared component that learns in this phase.

        Empty, and free of cost, when none does.
        """
        wanted = self.model.shared_components(phase)
        return self.model.shared_outputs(batch, phase.task, wanted, view="teacher_image") if wanted else {}


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
