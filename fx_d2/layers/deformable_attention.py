"""Multi-scale deformable attention (Zhu et al., ICLR 2021) in plain torch, and dispatch to faster kernels."""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fx_d2.layers.constants import constant
from fx_d2.layers.deformable_cpu import library_digest, sample_and_sum_cpu
from fx_d2.layers.precision import at_least_float32
from fx_d2.structures import FXError

logger = logging.getLogger(__name__)

SAMPLERS = ("auto", "torch", "cpp", "triton")
"""Implementations of the sampling, see `choose_sampler`."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def use_sampler(module: AnyModule, sampler: str, device: str) -> AnyModule:
    """Set the sampler of every deformable attention in a module.

    Args:
        module: changed in place.
        sampler: one of SAMPLERS.
        device: device type the module will run on; "auto" is resolved at run time.

    Returns:
        The module.

    Raises:
        FXError: the sampler does not exist or cannot run here.
    """
    if sampler != "auto" and device != "meta":
        choose_sampler(sampler, device)
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.sampler = sampler
    return module


def possible_sampler(sampler: str, device: str) -> str:
    """A run's sampler for use on another device: the same if that device can run it, else "auto".

    Raises:
        FXError: the sampler does not exist.
    """
    try:
        choose_sampler(sampler, device)
    except FXError:
        if sampler not in SAMPLERS:
            raise
        return "auto"
    return sampler


@torch.compiler.assume_constant_result
def choose_sampler(sampler: str, device: str) -> str:
    """The implementation that will run: "torch", "cpp" or "triton".

    Args:
        sampler: "torch": torch operators, on any device. "cpp": C++, on CPUs, compiled on first use. "triton": on GPUs.
            "auto": C++ on a CPU if it compiles, else torch.
        device: device type, such as "cpu".

    Raises:
        FXError: the sampler does not exist, or was requested by name and cannot run.
    """
    return _choose(sampler, device)


@functools.cache
def _choose(sampler: str, device: str) -> str:
    if sampler not in SAMPLERS:
        raise FXError(f"MODEL.LOC.SAMPLER is {sampler!r}: choose one of {list(SAMPLERS)}")
    supported = "cpu" if sampler == "cpp" else "cuda"
    if sampler in ("cpp", "triton") and device != supported:
        raise FXError(f"MODEL.LOC.SAMPLER {sampler} runs on {supported} devices, not on {device}: choose auto or torch")
    if sampler == "triton" and importlib.util.find_spec("triton") is None:
        raise FXError("MODEL.LOC.SAMPLER triton needs the triton package, which comes with CUDA builds of torch")
    if sampler == "cpp" or (sampler == "auto" and device == "cpu"):
        try:
            logger.info("deformable attention on %s: C++ library %s", device, library_digest())
            return "cpp"
        except FXError as error:
            if sampler == "cpp":
                raise FXError(f"MODEL.LOC.SAMPLER cpp: {error}") from error
            logger.info("deformable attention on %s: torch operators (%s)", device, error)
            return "torch"
    logger.info("deformable attention on %s: %s", device, "Triton" if sampler == "triton" else "torch operators")
    return "triton" if sampler == "triton" else "torch"


def sampler_identity(sampler: str, device: str) -> str:
    """The implementation, for run records, to explain last-bit differences: "torch", "triton", or "cpp <digest>"."""
    chosen = choose_sampler(sampler, device)
    return f"cpp {library_digest()}" if chosen == "cpp" else chosen


def sample_and_sum(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples from all levels.

    Args:
        value: (B, N, heads, D), the tokens of all levels concatenated, N = sum of H * W.
        shapes: (H, W) of each level.
        locations: (B, Q, heads, levels, points, 2), (x, y) normalised to [0, 1] per level.
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * D).
    """
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # B*heads, levels, Q, points, 2
    mass = weights.permute(0, 2, 3, 1, 4).flatten(0, 1).unsqueeze(2)  # B*heads, levels, 1, Q, points
    out: Tensor | None = None
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        image = part.permute(0, 2, 3, 1).reshape(batch * heads, dim, *shapes[level])
        samples = F.grid_sample(image, grids[:, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        term = (samples * mass[:, level]).sum(-1)  # reduced per level, so only one level's samples are alive
        out = term if out is None else out + term
    if out is None:
        raise ValueError("deformable attention needs at least one level")
    return out.view(batch, heads * dim, queries).transpose(1, 2)


def _sample(
    sampler: str, value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """`sample_and_sum` by the chosen implementation, in at least float32."""
    # Exported and traced programs must run without fx_d2.
    portable = torch.compiler.is_exporting() or torch.jit.is_tracing()
    way = "torch" if portable else choose_sampler(sampler, value.device.type)
    if way == "triton":
        from fx_d2.layers.deformable_triton import sample_and_sum_triton

        return sample_and_sum_triton(value, shapes, at_least_float32(locations), at_least_float32(weights))
    value, locations, weights = (at_least_float32(x) for x in (value, locations, weights))
    return (sample_and_sum_cpu if way == "cpp" else sample_and_sum)(value, shapes, locations, weights)


@constant
def _widths_and_heights(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor]:
    """(1, 1, levels, 2)."""
    # Filled on the device: compiled layers bypass the cache, and a list would be copied from the host on every call.
    sides = [torch.full((), side, dtype=dtype, device=device) for h, w in shapes for side in (w, h)]
    return (torch.stack(sides).view(1, 1, -1, 2),)


class DeformableAttention(nn.Module):
    """Each query samples a few learned points around its reference on every level.

    Args:
        dim: token size.
        heads: number of attention heads.
        levels: number of feature levels.
        points: sampling points per head and level.

    Attributes:
        sampler: one of SAMPLERS, see `use_sampler`.
    """

    def __init__(self, *, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by {heads} heads")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampler = "torch"
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """Initialisation of Deformable DETR: head k samples in direction k, point p at distance p."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        offsets = direction.view(self.heads, 1, 1, 2).expand(-1, self.levels, self.points, -1) * steps
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C), with positional encodings already added.
            references: (B, Q, levels, 2) points or (B, Q, levels, 4) boxes, in [0, 1].
            tokens: (B, N, C).
            shapes: (H, W) of each level.
            padding: (B, N) bool, True where a token is padding; None when there is none.

        Returns:
            (B, Q, C).
        """
        batch, queries, _ = query.shape
        value = self.value_proj(tokens)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0)
        layout = (batch, queries, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).view(*layout[:3], -1)
        weights = self.attention_weights(query).view(*layout[:3], -1).softmax(-1).view(layout)
        # One row for all levels and points of a head: ten times as fast on a CPU as rows of (x, y).
        centres = self._row(references[..., :2])
        if references.shape[-1] == 2:
            sizes = _widths_and_heights(tuple(shapes), references.dtype, references.device)[0]
            locations = torch.addcdiv(centres, offsets, self._row(sizes))
        else:
            locations = torch.addcmul(centres, offsets, self._row(references[..., 2:] * (0.5 / self.points)))
        locations = locations.view(*layout, 2)
        # Sampling locations need more than bfloat16's 8 bits: this part stays in float32 under autocast.
        with torch.autocast(query.device.type, enabled=False):
            split = value.view(batch, -1, self.heads, value.shape[-1] // self.heads)
            out = _sample(self.sampler, split, shapes, locations, weights)
        return self.output_proj(out)

    def _row(self, pairs: Tensor) -> Tensor:
        """(x, y) of each level, (B, Q, levels, 2), repeated for its points: (B, Q, 1, levels * points * 2)."""
        return pairs[:, :, None, :, None].expand(-1, -1, -1, -1, self.points, -1).flatten(3)
