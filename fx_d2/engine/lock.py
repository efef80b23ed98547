"""Freezing and releasing components at phase boundaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from fx_d2.modeling import FoundationX
from fx_d2.structures import Phase


def apply_phase(model: FoundationX, phase: Phase) -> None:
    """Apply a phase to the model: only the phase's trainable modules require grad and are in training mode.

    Everything else is in evaluation mode without gradients: no drop path, no running statistics, no autograd graph. The
    model's own `training` flag stays True, because it selects between losses and predictions.
    """
    model.eval()
    model.requires_grad_(False)
    model.training = True
    for module in trainable_modules(model, phase):
        module.train()
        module.requires_grad_(True)


def trainable_modules(model: FoundationX, phase: Phase) -> Iterator[nn.Module]:
    """The modules trained in a phase: those of its trainable components that its task and dataset use."""
    for component, modules in model.modules_of(phase.dataset, phase.task).items():
        if component in phase.trainable:
            yield from modules


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of norms in training mode: a step changes them differently in each process."""
    norms = (m for m in model.modules() if m.training and getattr(m, "track_running_stats", False))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()]


def parameters_of(model: FoundationX, phase: Phase) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of trainable and of frozen parameters in a phase, by component; components without any are omitted.

    Permanently frozen stages of the backbone (MODEL.TIMM.FROZEN_STAGES) count as frozen.
    """
    learning: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for component, modules in model.modules_of(phase.dataset, phase.task).items():
        able = {p: p.numel() for module in modules for p in module.parameters()}
        part = able
        if component == "backbone":
            part = able | {p: p.numel() for p in model.backbone.trunk.parameters()}
        learns = sum(able.values()) if component in phase.trainable else 0
        if learns:
            learning[component] = learns
        if learns < sum(part.values()):
            frozen[component] = sum(part.values()) - learns
    return learning, frozen


def describe_parameters(counts: Mapping[str, int]) -> str:
    """ "backbone 86.7M, cls_heads 14.4K", or "-" for none."""
    return ", ".join(f"{component} {short_count(count)}" for component, count in counts.items()) or "-"


def short_count(count: float) -> str:
    """A count with three or four digits and a suffix: 512, 14.4K, 86.7M, 1.2G."""
    for unit in ("", "K", "M"):
        if count < 999.95:
            return f"{count:.1f}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.1f}G"
