"""One optimizer over all parameters, with a learning rate per component."""

from __future__ import annotations

from collections import Counter

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.solver.build import get_default_optimizer_params
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from fx_d2.modeling import FoundationX
from fx_d2.structures import FXError


def build_optimizer(cfg: CfgNode, model: FoundationX) -> torch.optim.Optimizer:
    """AdamW over every parameter of the model, each in exactly one group.

    Parameters without a gradient in a step are skipped: no moment, no weight decay touches a frozen part.

    Raises:
        FXError: SOLVER.OPTIMIZER is unknown.
        RuntimeError: a parameter is in no group or in two.
    """
    factors = {component.lower(): factor for component, factor in cfg.SOLVER.LR_FACTOR.items()}
    model.requires_grad_(True)
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: factors[name.split(".", 1)[0]],
    )
    check_groups(model, groups)
    if cfg.SOLVER.OPTIMIZER != "adamw":
        raise FXError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}: only adamw is there")
    return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, fused=True)


def check_groups(model: torch.nn.Module, groups: list[dict]) -> None:
    """Raise RuntimeError, naming parameters, unless each one of the model is in exactly one group."""
    seen = Counter(id(p) for group in groups for p in group["params"])
    wrong = [name for name, p in model.named_parameters() if seen[id(p)] != 1]
    if wrong or len(seen) != len(list(model.parameters())):
        raise RuntimeError(f"{len(wrong)} parameters are not in exactly one optimizer group, first {wrong[:3]}")


def build_lr_schedule(cfg: CfgNode, optimizer: torch.optim.Optimizer, total: int, cycle: int) -> LRMultiplier:
    """Linear warm-up over SOLVER.WARMUP_CYCLES, then half a cosine; stepped every iteration.

    Args:
        cfg: SOLVER.
        optimizer: its groups' learning rates are multiplied.
        total: iterations of the run.
        cycle: iterations of one cycle.
    """
    warmup = min(round(cfg.SOLVER.WARMUP_CYCLES * cycle), total - 1)
    multiplier = CosineParamScheduler(1.0, cfg.SOLVER.FINAL_LR_FACTOR)
    # The first step gets 1/warmup of the rate, as the reference's warm-up counts from one.
    multiplier = WarmupParamScheduler(multiplier, 1 / max(warmup, 1), warmup / total, "linear")
    return LRMultiplier(optimizer, multiplier, max_iter=total)
