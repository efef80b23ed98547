"""One optimizer over all parameters, with learning rates by component, backbone depth and task."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.solver.build import reduce_param_groups
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, ParamScheduler
from torch import nn

from fx_d2.engine.schedule import PhaseSchedule
from fx_d2.modeling import FoundationX
from fx_d2.structures import TASKS, FXError

logger = logging.getLogger(__name__)

_TABLES = ("relative_position_bias_table", "pos_embed", "level_embed", "cls_token", "reg_token")
"""Name suffixes of lookup tables other than nn.Embedding."""

_BLOCK = re.compile(r"\bblocks\.\d+(\.\d+)?\b|\blayer\d+\.\d+\b|\bs\d+\.b\d+\b")
"""Names of backbone blocks in timm: Swin, ConvNeXt, ViT and EfficientNet; ResNet; RegNet."""


def build_optimizer(cfg: CfgNode, model: FoundationX) -> torch.optim.Optimizer:
    """AdamW or SGD over all parameters of the model, each in exactly one group; equal settings share a group.

    Parameters without a gradient in a step are skipped, so neither moments nor weight decay affect frozen components.

    Raises:
        FXError: SOLVER.OPTIMIZER is unknown, or SOLVER.LAYER_DECAY is set for a backbone without known blocks.
        RuntimeError: a parameter is in no group or in more than one.
    """
    node = cfg.SOLVER
    model.requires_grad_(True)
    groups = parameter_groups(cfg, model)
    check_groups(model, groups)
    if node.OPTIMIZER == "adamw":
        return torch.optim.AdamW(groups, lr=node.BASE_LR, fused=True)
    if node.OPTIMIZER == "sgd":
        # foreach, since fused SGD fails if only some of the parameters in a pass have a momentum buffer yet.
        return torch.optim.SGD(groups, lr=node.BASE_LR, momentum=node.MOMENTUM, nesterov=node.NESTEROV, foreach=True)
    raise FXError(f"SOLVER.OPTIMIZER is {node.OPTIMIZER!r}: choose adamw or sgd")


def moments_kept(cfg: CfgNode) -> int:
    """Number of state tensors of the parameter's size that the optimizer keeps for each parameter."""
    if cfg.SOLVER.OPTIMIZER == "adamw":
        return 2
    return 1 if cfg.SOLVER.MOMENTUM else 0


def parameter_groups(cfg: CfgNode, model: FoundationX) -> list[dict]:
    """Parameter groups {"params", "lr", "weight_decay"}, merged where learning rate and weight decay are equal.

    The learning rate is BASE_LR times the component's LR_FACTOR and, in the backbone, the factor of `layer_scales`.
    Weight decay is set separately for matrices, norms, biases and tables.
    """
    node = cfg.SOLVER
    factors = {component.lower(): factor for component, factor in node.LR_FACTOR.items()}
    depths = layer_scales(model.backbone.trunk, node.LAYER_DECAY) if node.LAYER_DECAY != 1 else {}
    decays = {
        "matrix": node.WEIGHT_DECAY,
        "norm": node.WEIGHT_DECAY_NORM,
        "bias": node.WEIGHT_DECAY_BIAS,
        "table": node.WEIGHT_DECAY_EMBED,
    }
    rows = []
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            rate = node.BASE_LR * factors[path.split(".", 1)[0]] * depths.get(parameter, 1.0)
            decay = decays[_kind(module, name, parameter)]
            rows.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    return reduce_param_groups(rows)


def _kind(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    """The weight decay category of a parameter. A vector other than a bias is a norm's weight, or a similar scale."""
    if isinstance(module, nn.Embedding) or name.endswith(_TABLES):
        return "table"
    if name.endswith("bias"):
        return "bias"
    return "norm" if parameter.ndim <= 1 else "matrix"


def layer_scales(trunk: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Layer-wise learning-rate decay from the end of the backbone to its stem, as in BEiT and ViTDet.

    Parameters between blocks (such as patch merging) belong to the block that follows.

    Returns:
        Parameter of the backbone -> decay ** (n + 1 - i), with i = 0 for the stem and 1 to n for the blocks.

    Raises:
        FXError: no parameter name matches that of a block.
    """
    depth, block = 0, ""
    found: dict[nn.Parameter, int] = {}
    waiting: list[nn.Parameter] = []
    for name, parameter in trunk.named_parameters():
        match = _BLOCK.search(name)
        if match is None:
            waiting.append(parameter)
            continue
        here = name[: match.end()]
        if here != block:
            # Parameters before the first block are the stem.
            found |= dict.fromkeys(waiting, depth + 1 if depth else 0)
            depth, block, waiting = depth + 1, here, []
        found[parameter] = depth
    if not depth:
        raise FXError(f"SOLVER.LAYER_DECAY: {type(trunk).__name__} has no blocks with a known name: set it to 1.0")
    found |= dict.fromkeys(waiting, depth)
    return {parameter: decay ** (depth + 1 - i) for parameter, i in found.items()}


def check_groups(model: torch.nn.Module, groups: Iterable[Mapping]) -> None:
    """RuntimeError, with the names, unless each parameter of the model is in exactly one group."""
    seen = Counter(id(p) for group in groups for p in group["params"])
    wrong = [name for name, p in model.named_parameters() if seen[id(p)] != 1]
    if wrong or len(seen) != len(list(model.parameters())):
        raise RuntimeError(f"{len(wrong)} parameters are not in exactly one optimizer group, first {wrong[:3]}")


class RunScheduler(ParamScheduler):
    """Multiplier of all learning rates, a function of the iteration only, so resuming is exact.

    Args:
        curve: warm-up and decay over the run.
        schedule: of the run.
        scales: additional factor for the steps of each task.
        by_cycle: one value per cycle, as in the reference: the one reached after the first slot of the cycle if all
            slots had equal length, since the reference counts slots from one.
    """

    def __init__(
        self, curve: ParamScheduler, schedule: PhaseSchedule, scales: Mapping[str, float], by_cycle: bool
    ) -> None:
        self._curve, self._schedule, self._scales, self._by_cycle = curve, schedule, dict(scales), by_cycle
        self._slots = len({(phase.dataset, phase.task) for phase in schedule.phases})

    def __call__(self, where: float) -> float:
        """The multiplier at `where`, the completed fraction of the run's iterations."""
        state = self._schedule.at(round(where * self._schedule.total))
        if self._by_cycle:
            where = min((state.cycle + 1 / self._slots) / self._schedule.cycles, 1.0)
        return self._curve(where) * self._scales[state.phase.task]


def build_lr_schedule(cfg: CfgNode, optimizer: torch.optim.Optimizer, schedule: PhaseSchedule) -> LRMultiplier:
    """Linear warm-up over SOLVER.WARMUP_CYCLES, then cosine decay, as in the reference, times the factor of the task.

    Args:
        cfg: SOLVER and SCHEDULE.BATCH_SIZE are read.
        optimizer: the learning rates of its groups are scaled at every iteration.
        schedule: of the run.

    Raises:
        FXError: SOLVER.LR_UPDATE is unknown.
    """
    node, total = cfg.SOLVER, schedule.total
    if node.LR_UPDATE not in ("step", "cycle"):
        raise FXError(f"SOLVER.LR_UPDATE is {node.LR_UPDATE!r}: choose step or cycle")
    by_cycle = node.LR_UPDATE == "cycle"
    warmup = min(round(node.WARMUP_CYCLES * schedule.cycle_length), total - 1)
    # The first step has 1 / warmup of the rate, since the reference's warm-up counts from one. By cycle it starts at 0.
    first = 0.0 if by_cycle else 1 / max(warmup, 1)
    cosine = CosineParamScheduler(1.0, node.FINAL_LR_FACTOR)
    curve = WarmupParamScheduler(cosine, first, warmup / total, "linear", rescale_interval=True)
    scales = task_scales(cfg)
    if node.REFERENCE_BATCH:
        for task in dict.fromkeys(phase.task for phase in schedule.phases):
            size = cfg.SCHEDULE.BATCH_SIZE[task.upper()]
            logger.info("%s: batch size %d, learning rates scaled by %.4g", task, size, scales[task])
    return LRMultiplier(optimizer, RunScheduler(curve, schedule, scales, by_cycle), max_iter=total)


def task_scales(cfg: CfgNode) -> dict[str, float]:
    """Learning-rate factor of each task: batch size / SOLVER.REFERENCE_BATCH (Goyal et al., 2017), or 1 if that is 0.

    Raises:
        FXError: SOLVER.REFERENCE_BATCH is negative.
    """
    sizes, reference = cfg.SCHEDULE.BATCH_SIZE, cfg.SOLVER.REFERENCE_BATCH
    if reference < 0:
        raise FXError(f"SOLVER.REFERENCE_BATCH is {reference}: images per step, or 0 for no scaling")
    return {task: sizes[task.upper()] / reference if reference else 1.0 for task in TASKS}
