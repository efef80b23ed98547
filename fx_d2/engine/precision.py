"""Mixed precision: the autocast dtype, and optimizer steps with float16 loss scaling."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode

from fx_d2.structures import FXError

logger = logging.getLogger(__name__)

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""torch's names for bfloat16 instruction sets on x86 and ARM."""

LEAST_SCALE = 1e-4
"""Minimum float16 loss scale, as in fairseq: a gradient that still overflows was not finite before scaling."""


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The autocast dtype from SOLVER.AMP, None if disabled; FXError if unknown or not supported by the device."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name not in AMP_DTYPES:
        raise FXError(f"SOLVER.AMP.DTYPE is {name!r}: choose one of {sorted(AMP_DTYPES)}")
    if name == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise FXError("SOLVER.AMP.DTYPE float16 needs a GPU: use bfloat16 on the CPU")
    if cfg.MODEL.DEVICE == "cpu" and not cpu_has_bfloat16():
        logger.warning(
            "this CPU has no bfloat16 instructions, so bfloat16 is far slower than float32: set "
            "SOLVER.AMP.ENABLED False"
        )
    if name == "bfloat16" and cfg.MODEL.DEVICE.startswith("cuda") and not gpu_has_bfloat16():
        logger.warning("this GPU has no bfloat16 instructions, so bfloat16 is far slower: set SOLVER.AMP.DTYPE float16")
    return AMP_DTYPES[name]


def gpu_has_bfloat16() -> bool:
    """Whether the GPU supports bfloat16 natively, rather than emulating it in float32: NVIDIA Ampere and later."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU supports bfloat16 natively, rather than emulating it in float32."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in _BFLOAT16)


def step_unless_overflown(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, finite: bool) -> float | None:
    """Step the optimizer unless the gradient is not finite, then update the loss scale.

    Args:
        scaler: has already unscaled the gradients.
        optimizer: the optimizer.
        finite: whether the gradient norm is finite; the same on all processes.

    Returns:
        The loss scale of the next step, or None without loss scaling.

    Raises:
        FXError: the scale fell below LEAST_SCALE, so the overflow has another cause.
    """
    if finite:
        scaler.step(optimizer)
    scaler.update()
    if not scaler.is_enabled():
        return None
    scale = scaler.get_scale()
    if scale < LEAST_SCALE:
        raise FXError(
            f"gradients overflow in float16 even with a loss scale of {scale:.1g}: use SOLVER.AMP.DTYPE bfloat16, or "
            "a lower SOLVER.BASE_LR"
        )
    return float(scale)
