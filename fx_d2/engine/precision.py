"""Mixed precision: the type of autocast, and the optimizer's step under float16's loss scale."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode

from fx_d2.structures import FXError

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""torch's names of instructions for bfloat16, of x86 and of ARM."""

LEAST_SCALE = 1e-4
"""Of float16's loss, as fairseq has it: a gradient that still overflows was not finite before it was scaled."""


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type of autocast from SOLVER.AMP, None without; FXError for an unknown one, or one the device lacks."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name not in AMP_DTYPES:
        raise FXError(f"SOLVER.AMP.DTYPE is {name!r}: choose one of {sorted(AMP_DTYPES)}")
    if name == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise FXError("SOLVER.AMP.DTYPE float16 needs a GPU: use bfloat16 on the CPU")
    if cfg.MODEL.DEVICE == "cpu" and not cpu_has_bfloat16():
        logging.getLogger(__name__).warning(
            "this processor has no instructions for bfloat16 and computes in it far slower than in float32: set "
            "SOLVER.AMP.ENABLED False"
        )
    if name == "bfloat16" and cfg.MODEL.DEVICE.startswith("cuda") and not gpu_has_bfloat16():
        logging.getLogger(__name__).warning(
            "this GPU has no instructions for bfloat16 and computes in it far slower: set SOLVER.AMP.DTYPE float16"
        )
    return AMP_DTYPES[name]


def gpu_has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16 rather than by way of float32: since NVIDIA's Ampere."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16 rather than by way of float32."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in _BFLOAT16)


def step_unless_overflown(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, finite: bool) -> float | None:
    """The optimizer's step, left out where the gradient is not finite; then the loss scale falls, or in time grows.

    Args:
        scaler: has unscaled the gradients.
        optimizer: steps.
        finite: whether the gradients' norm is; the same on all processes.

    Returns:
        The loss scale of the next step, or None without one.

    Raises:
        FXError: the scale has become so small that the fault is not its.
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
