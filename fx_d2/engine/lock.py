"""Freezing and releasing components at a phase's boundary."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from fx_d2.modeling import FoundationX
from fx_d2.structures import Phase


def apply_phase(model: FoundationX, phase: Phase) -> None:
    """Put the model into a phase: only the phase's trainable modules learn and are in training mode.

    Everything else is in evaluation mode without gradients: no drop path, no running statistics, no graph. The
    model's own flag stays in training, because it decides between losses and results.
    """
    model.eval()
    model.requires_grad_(False)
    model.training = True
    for module in trainable_modules(model, phase):
        module.train()
        module.requires_grad_(True)


def trainable_modules(model: FoundationX, phase: Phase) -> Iterator[nn.Module]:
    """The modules that learn in a phase: of the trainable components, what the phase's task runs through."""
    for component, modules in model.modules_of(phase.dataset, phase.task).items():
        if component in phase.trainable:
            yield from modules


def running_statistics(model: nn.Module) -> list[Tensor]:
    """What a step changes besides weights, and each process differently: the running means and variances of the norms
    in training mode.
    """
    norms = (m for m in model.modules() if m.training and getattr(m, "track_running_stats", False))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()]


def count_parameters(model: FoundationX, phase: Phase) -> tuple[int, int]:
    """(learning, frozen) parameters that take part in a phase."""
    parts = model.modules_of(phase.dataset, phase.task)
    sizes = {c: sum(p.numel() for m in modules for p in m.parameters()) for c, modules in parts.items()}
    learning = sum(n for c, n in sizes.items() if c in phase.trainable)
    return learning, sum(sizes.values()) - learning
