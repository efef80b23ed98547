"""Parameters and arithmetic of each component, counted without memory and without computing."""

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
    """What a component costs.

    Attributes:
        component: one of COMPONENTS; of a component with one module per dataset, that of one dataset.
        parameters: how many numbers learn.
        flops: of one forward pass for one image; a multiplication and an addition are two.
        uncounted: names of torch's operators that compute something and ran without being counted.
    """

    component: str
    parameters: int
    flops: int
    uncounted: frozenset[str]


def component_costs(cfg: CfgNode, spec: DatasetSpec, size: Sequence[int]) -> list[Cost]:
    """The costs of a model with one dataset, in the order in which an image passes the components.

    Counted are matrix products, convolutions, attention, and the bilinear samples of deformable attention with their
    weights (five multiplications and additions a sample and channel). fvcore's counter, for comparison, leaves out
    fused attention and needs a model with weights. What is not counted is named in `Cost.uncounted`.

    Args:
        cfg: MODEL is read.
        spec: a row with all three tasks; its classes decide the sizes of heads.
        size: (height, width) of the image.

    Raises:
        FXError: the row lacks a task, or a trunk for this size cannot be built.
    """
    if spec.tasks != TASKS:
        raise FXError(f"dataset {spec.name!r} has only {list(spec.tasks)}: a row with all of {TASKS} is needed")
    # Autocast, which deformable attention switches off, does not know the meta device; fake CPU tensors are as light.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model = _without_memory(cfg, spec, size, fake)
    costs: list[Cost] = []

    def run(component: str, module: nn.Module, *inputs: Any) -> Any:
        out, flops, uncounted = _count(lambda: module(*inputs))
        part = getattr(model, component) if component == "backbone" else module
        costs.append(Cost(component, sum(p.numel() for p in part.parameters()), flops // 2, uncounted))
        return out

    with fake, torch.no_grad():
        heads = {task: getattr(model, part)[spec.name] for task, part in HEAD_COMPONENTS.items()}
        # Two images, because a group norm refuses a single value, which one image may leave of the coarsest level.
        features = run("backbone", model.backbone, torch.empty(2, 1, *size))
        run("cls_heads", heads["cls"], model.backbone.pooled(features))
        memory = run("loc_encoder", model.loc_encoder, model.backbone.levels(features), None)
        run("loc_decoders", heads["loc"], memory)
        fused = run("seg_decoder", model.seg_decoder, list(features.values()))
        run("seg_heads", heads["seg"], fused)
    return costs


def _without_memory(cfg: CfgNode, spec: DatasetSpec, size: Sequence[int], fake: FakeTensorMode) -> Any:
    """The model with fake weights; nothing is downloaded."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE = list(size)
    cfg.MODEL.TIMM.KWARGS.pop("pretrained", None)
    cfg.MODEL.LOC.SAMPLER = "torch"  # whose operators are counted, and run on tensors without memory
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg, specs=[spec])
    with fake:
        return model.to_empty(device="cpu").requires_grad_(False).eval()


class _Operators(TorchDispatchMode):
    """Notes each operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


def _count(function: Callable[[], T]) -> tuple[T, int, frozenset[str]]:
    """What a function returns, its FLOPs, and the operators that were not counted."""
    mapping: dict[Any, Any] = {torch.ops.aten.grid_sampler_2d: _sampling_flops}
    # The mode that is entered last sees an operator first, and the other one what is left after decomposition.
    with _Operators() as operators, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        out = function()
    left = {op for op in operators.seen if op.overloadpacket not in counter.flop_registry and _computes(op)}
    return out, counter.get_total_flops(), frozenset(str(op.overloadpacket) for op in left)


def _computes(op: Any) -> bool:
    """Whether an operator makes new tensors out of tensors: no view, no allocation."""
    takes, gives = ([v for v in side if "Tensor" in str(v.type)] for side in (op._schema.arguments, op._schema.returns))
    return bool(takes and gives) and not any(value.alias_info for value in gives)


def _sampling_flops(*shapes: Any, out_shape: Sequence[int], **others: Any) -> int:
    """Four neighbours and the attention weight: five multiplications and additions for each sampled value."""
    del shapes, others
    return 10 * torch.Size(out_shape).numel()
