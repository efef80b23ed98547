"""Parameters and FLOPs of each component, counted on fake tensors: no weights, no computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fx_d2.structures import HEAD_COMPONENTS, TASKS, DatasetSpec, FXError

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Cost of a component.

    Attributes:
        component: one of COMPONENTS; for components with one module per dataset, the module of one dataset.
        parameters: number of parameters.
        flops: of one forward pass on one image; a multiply-add counts as two.
        uncounted: names of the torch operators that computed something but are not counted.
    """

    component: str
    parameters: int
    flops: int
    uncounted: frozenset[str]


def component_costs(cfg: CfgNode, spec: DatasetSpec, size: Sequence[int]) -> list[Cost]:
    """Costs of a model with one dataset, in the order in which an image passes through the components.

    Counts matrix products, convolutions, attention, and the weighted bilinear samples of deformable attention (five
    multiply-adds per sample and channel). `Cost.uncounted` names the rest. fvcore's counter, in comparison, misses
    fused attention and needs a model with weights.

    Args:
        cfg: MODEL is read.
        spec: a dataset row with all three tasks; its classes decide the head sizes.
        size: (height, width) of the image.

    Raises:
        FXError: the row lacks a task, or no backbone can be built for this size.
    """
    if spec.tasks != TASKS:
        raise FXError(f"dataset {spec.name!r} has only {list(spec.tasks)}: choose a dataset with all of {TASKS}")
    # Deformable attention disables autocast, which does not support the meta device; fake CPU tensors cost as little.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model = _without_memory(cfg, spec, size, fake)
    costs: list[Cost] = []

    def run(component: str, module: nn.Module, *inputs: Any) -> Any:
        out, flops, uncounted = _count(lambda: module(*inputs))
        part = getattr(model, component) if component == "backbone" else module
        costs.append(Cost(component, sum(p.numel() for p in part.parameters()), flops, uncounted))
        return out

    with fake, torch.no_grad():
        heads = {task: getattr(model, part)[spec.name] for task, part in HEAD_COMPONENTS.items()}
        features = run("backbone", model.backbone, torch.empty(1, 1, *size))
        run("cls_heads", heads["cls"], model.backbone.pooled(features))
        memory = run("loc_encoder", model.loc_encoder, model.backbone.levels(features), None)
        run("loc_decoders", heads["loc"], memory)
        fused = run("seg_decoder", model.seg_decoder, list(features.values()))
        run("seg_heads", heads["seg"], fused)
    return costs


def _without_memory(cfg: CfgNode, spec: DatasetSpec, size: Sequence[int], fake: FakeTensorMode) -> Any:
    """The model with fake weights and without pretrained ones."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE = list(size)
    cfg.MODEL.TIMM.KWARGS.pop("pretrained", None)
    cfg.MODEL.LOC.SAMPLER = "torch"  # its operators can be counted
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg, specs=[spec])
    with fake:
        return model.to_empty(device="cpu").requires_grad_(False).eval()


class _Operators(TorchDispatchMode):
    """Records every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


def _count(function: Callable[[], T]) -> tuple[T, int, frozenset[str]]:
    """A function's result, its FLOPs, and the operators that were not counted."""
    mapping: dict[Any, Any] = {torch.ops.aten.grid_sampler_2d: _sampling_flops}
    # The mode entered last sees an operator first; the other one sees what it decomposes into.
    with _Operators() as operators, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        out = function()
    left = {op for op in operators.seen if op.overloadpacket not in counter.flop_registry and _computes(op)}
    return out, counter.get_total_flops(), frozenset(str(op.overloadpacket) for op in left)


def _computes(op: Any) -> bool:
    """Whether an operator computes new tensors from tensors, unlike a view or an allocation."""
    takes, gives = ([v for v in side if "Tensor" in str(v.type)] for side in (op._schema.arguments, op._schema.returns))
    return bool(takes and gives) and not any(value.alias_info for value in gives)


def _sampling_flops(*shapes: Any, out_shape: Sequence[int], **others: Any) -> int:
    """Four neighbours and the attention weight: five multiply-adds for each sampled value."""
    del shapes, others
    return 10 * torch.Size(out_shape).numel()
