"""Multi-scale deformable attention (Zhu et al., ICLR 2021): in plain torch, and the choice of quicker ways."""

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
"""Ways to compute the samples: `choose_sampler`."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def use_sampler(module: AnyModule, sampler: str, device: str) -> AnyModule:
    """Set how the deformable attention inside a module computes; the module.

    Args:
        module: changed in place.
        sampler: one of SAMPLERS.
        device: type of device the module will run on; "auto" is decided when it runs.

    Raises:
        FXError: there is no such sampler, or it cannot run here.
    """
    if sampler != "auto" and device != "meta":
        choose_sampler(sampler, device)
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.sampler = sampler
    return module


def possible_sampler(sampler: str, device: str) -> str:
    """The sampler of a run for use on another device: the same where that can run it, else "auto".

    Raises:
        FXError: there is no such sampler.
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
    """The way that runs: "torch", "cpp" or "triton".

    Args:
        sampler: "torch": torch's operators, everywhere. "cpp": C++, on CPUs; compiled on first use. "triton": on GPUs.
            "auto": C++ on a CPU if it can be compiled, else torch.
        device: type of device, such as "cpu".

    Raises:
        FXError: there is no such sampler, or it was asked for by name and cannot run.
    """
    return _choose(sampler, device)


@functools.cache
def _choose(sampler: str, device: str) -> str:
    if sampler not in SAMPLERS:
        raise FXError(f"MODEL.LOC.SAMPLER is {sampler!r}: choose one of {list(SAMPLERS)}")
    place = "cpu" if sampler == "cpp" else "cuda"
    if sampler in ("cpp", "triton") and device != place:
        raise FXError(f"MODEL.LOC.SAMPLER {sampler} computes on {place} devices, not on {device}: choose auto or torch")
    if sampler == "triton" and importlib.util.find_spec("triton") is None:
        raise FXError("MODEL.LOC.SAMPLER triton needs the package triton, which comes with torch for GPUs")
    if sampler == "cpp" or (sampler == "auto" and device == "cpu"):
        try:
            logger.info("deformable attention on %s: C++ library %s", device, library_digest())
            return "cpp"
        except FXError as error:
            if sampler == "cpp":
                raise FXError(f"MODEL.LOC.SAMPLER cpp: {error}") from error
            logger.info("deformable attention on %s: torch's operators (%s)", device, error)
            return "torch"
    logger.info("deformable attention on %s: %s", device, "Triton" if sampler == "triton" else "torch's operators")
    return "triton" if sampler == "triton" else "torch"


def sampler_identity(sampler: str, device: str) -> str:
    """What decides the last bits of the results, for records: "torch", "triton", or "cpp" with the library's digest."""
    chosen = choose_sampler(sampler, device)
    return f"cpp {library_digest()}" if chosen == "cpp" else chosen


def sample_and_sum(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Bilinear samples of all levels, weighted and summed.

    Args:
        value: (B, N, heads, D), the tokens of all levels one after the other, N = sum of H * W.
        shapes: (H, W) of each level.
        locations: (B, Q, heads, levels, points, 2), (x, y) in [0, 1] of the level.
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
        term = (samples * mass[:, level]).sum(-1)  # summing per level keeps only one level's samples alive
        out = term if out is None else out + term
    if out is None:
        raise ValueError("deformable attention needs at least one level")
    return out.view(batch, heads * dim, queries).transpose(1, 2)


def _sample(sampler: str, value: Tensor, shapes: Sequence[tuple[int, int]], place: Tensor, weights: Tensor) -> Tensor:
    """`sample_and_sum` in the chosen way, in float32 at least."""
    # Exported and traced programs run where there is no fx_d2.
    portable = torch.compiler.is_exporting() or torch.jit.is_tracing()
    way = "torch" if portable else choose_sampler(sampler, value.device.type)
    if way == "triton":
        from fx_d2.layers.deformable_triton import sample_and_sum_triton

        return sample_and_sum_triton(value, shapes, at_least_float32(place), at_least_float32(weights))
    value, place, weights = (at_least_float32(x) for x in (value, place, weights))
    return (sample_and_sum_cpu if way == "cpp" else sample_and_sum)(value, shapes, place, weights)


@constant
def _widths_and_heights(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor]:
    """(1, 1, levels, 2)."""
    # Made on the device: a compiled layer keeps nothing, and would fetch a list's numbers from the host each time.
    sides = [torch.full((), side, dtype=dtype, device=device) for h, w in shapes for side in (w, h)]
    return (torch.stack(sides).view(1, 1, -1, 2),)


class DeformableAttention(nn.Module):
    """Each query looks at a few learned points on every level around its reference.

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
        """Start as the authors of deformable attention do: head k looks in direction k, point p at distance p."""
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
            query: (B, Q, C), with positions already added.
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
        # A row for all levels and points of a head: ten times as fast on a CPU as rows of x and y.
        centres = self._row(references[..., :2])
        if references.shape[-1] == 2:
            sizes = _widths_and_heights(tuple(shapes), references.dtype, references.device)[0]
            locations = torch.addcdiv(centres, offsets, self._row(sizes))
        else:
            locations = torch.addcmul(centres, offsets, self._row(references[..., 2:] * (0.5 / self.points)))
        locations = locations.view(*layout, 2)
        # Sampling positions need more than bfloat16's 8 bits: this part stays in float32 under autocast.
        with torch.autocast(query.device.type, enabled=False):
            split = value.view(batch, -1, self.heads, value.shape[-1] // self.heads)
            out = _sample(self.sampler, split, shapes, locations, weights)
        return self.output_proj(out)

    def _row(self, pairs: Tensor) -> Tensor:
        """(x, y) of each level, (B, Q, levels, 2), for each of its points: (B, Q, 1, levels * points * 2)."""
        return pairs[:, :, None, :, None].expand(-1, -1, -1, -1, self.points, -1).flatten(3)
