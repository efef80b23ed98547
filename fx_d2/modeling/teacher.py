"""The teacher: an exponential moving average (EMA) of the student, always in evaluation mode and under no_grad."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import Tensor, nn

from fx_d2.modeling.meta_arch import FoundationX, Samples
from fx_d2.structures import FXError, Phase


@dataclass(frozen=True)
class Momentum:
    """EMA momentum over a run (MODEL.TEACHER); stateless, so resuming needs only the iteration.

    Attributes:
        schedule: "constant" (the reference); "cosine", from `start` to `end` over the run (BYOL, DINO); "warmup",
            min(start, (1 + n) / (10 + n)) after n updates, which forgets the initialisation quickly (TensorFlow's
            `ExponentialMovingAverage`).
        start: MOMENTUM.
        end: MOMENTUM_END.
        per_step: update after every step instead of every pass.
    """

    schedule: str
    start: float
    end: float
    per_step: bool

    def at(self, where: float, updates: int) -> float:
        """The momentum of an update.

        Args:
            where: completed fraction of the run, in [0, 1].
            updates: number of earlier updates.
        """
        if self.schedule == "cosine":
            return float(CosineParamScheduler(self.start, self.end)(where))
        if self.schedule == "warmup":
            return min(self.start, (1 + updates) / (10 + updates))
        return self.start


def build_momentum(cfg: CfgNode) -> Momentum:
    """Momentum from MODEL.TEACHER; FXError for invalid values."""
    node = cfg.MODEL.TEACHER
    for key, allowed in (("SCHEDULE", ("constant", "cosine", "warmup")), ("UPDATE", ("pass", "step"))):
        if node[key] not in allowed:
            raise FXError(f"MODEL.TEACHER.{key} is {node[key]!r}: choose one of {list(allowed)}")
    for key in ("MOMENTUM", "MOMENTUM_END"):
        if not 0 <= node[key] <= 1:
            raise FXError(f"MODEL.TEACHER.{key} is {node[key]}: it must be in [0, 1]")
    return Momentum(node.SCHEDULE, node.MOMENTUM, node.MOMENTUM_END, node.UPDATE == "step")


class EMATeacher(nn.Module):
    """EMA of a student, heads and decoders included, so the teacher can be evaluated and exported.

    Args:
        student: copied once, then tracked: its parameters and buffers must remain the same tensor objects.
    """

    def __init__(self, student: FoundationX) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)
        pairs = list(zip(_tensors(self.model), _tensors(student), strict=True))
        # Listed once: an update is two torch calls, whatever the number of tensors.
        self._averaged = _columns(pair for pair in pairs if pair[0].is_floating_point())
        self._copied = _columns(pair for pair in pairs if not pair[0].is_floating_point())
        self.train(False)

    def train(self, mode: bool = True) -> EMATeacher:
        """Stays in evaluation mode; `mode` is ignored."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """teacher <- m * teacher + (1 - m) * student, for all parameters and buffers; integer buffers are copied.

        Frozen components are included: the student is constant there, but the teacher has not converged to it yet.
        """
        torch._foreach_lerp_(*self._averaged, 1 - momentum)
        if self._copied[0]:  # torch refuses an empty list
            torch._foreach_copy_(*self._copied)

    @torch.no_grad()
    def guide(self, batch: Samples, phase: Phase) -> dict[str, Tensor]:
        """The teacher's side of the consistency losses: one tensor per shared component trainable in this phase.

        If there is none, nothing runs and the result is empty.
        """
        wanted = self.model.shared_components(phase)
        return self.model.shared_outputs(batch, phase.task, wanted, view="teacher_image") if wanted else {}


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _columns(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    rows = list(pairs)
    return [mine for mine, _ in rows], [theirs for _, theirs in rows]
