"""Deformable attention: torch operators compared with the C++ library, or on a GPU with the Triton kernels.

At the model's sizes: encoder layers have one query per token, decoder layers one per learned and denoising query.
Results are compared before anything is timed. On a CPU, seconds are CPU seconds; on a GPU, wall-clock seconds with
bfloat16 values, as under autocast. With --allocator default, glibc returns large tensors to the system on each free,
which is most expensive for the candidates that allocate most.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.timing import ratio_table, take_turns, wall_clock
from benchmarks.world import repetitions
from fx_d2.layers.deformable_attention import sample_and_sum
from fx_d2.layers.deformable_cpu import library_digest, sample_and_sum_cpu
from fx_d2.layers.deformable_op import Sampler
from fx_d2.structures import FXError

HELP = "deformable attention: torch operators compared with the C++ library, or on a GPU with the Triton kernels"
BASELINE, CPP, TRITON = "torch", "C++", "Triton"
HEADS, DIM, LEVELS, POINTS = 8, 32, 4, 4
"""As in the default model."""
DECODER_QUERIES = 300 + 198
"""Learned queries, plus denoising queries for three boxes per image."""
MOST = 1e-2
"""Largest relative difference of results, see `difference`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options: none of its own, one thread."""
    parser.set_defaults(threads=1)


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    gpu = args.device.startswith("cuda")
    samplers = _of_gpus() if gpu else _of_cpus()
    side = args.size or (64 if args.quick else 224)
    shapes = [(math.ceil(side / stride),) * 2 for stride in (8, 16, 32, 64)]
    tokens = sum(h * w for h, w in shapes)
    where = "on a GPU, values in bfloat16" if gpu else f"{torch.get_num_threads()} threads; seconds are CPU seconds"
    clock = wall_clock(args.device) if gpu else time.process_time
    parts = [f"{args.batch} images of {side} pixels, {where}"]
    for title, queries in (("encoder layer", tokens), ("decoder layer", DECODER_QUERIES)):
        for backward in (False, True):
            inputs = draw(shapes, args.batch, queries, backward, args.device)
            off = difference(samplers, shapes, inputs)
            calls = {name: _call(sample, shapes, inputs, backward) for name, sample in samplers.items()}
            times = take_turns(calls, repetitions(args, 15), clock)
            kind = "forward and backward" if backward else "forward"
            table = ratio_table(times, BASELINE, args.batch)
            parts.append(f"{title}, {queries} queries, {kind}; results differ by {off:.1g}\n\n{table}")
    return "\n\n".join(parts)


def _of_cpus() -> dict[str, Sampler]:
    library_digest()  # compiles before anything is timed
    return {BASELINE: sample_and_sum, CPP: sample_and_sum_cpu}


def _of_gpus() -> dict[str, Sampler]:
    from fx_d2.layers.deformable_triton import sample_and_sum_triton

    # As the model calls them: torch operators need one dtype.
    return {BASELINE: lambda value, *rest: sample_and_sum(value.float(), *rest), TRITON: sample_and_sum_triton}


def draw(
    shapes: Sequence[tuple[int, int]], batch: int, queries: int, backward: bool, device: str
) -> tuple[list[Tensor], Tensor]:
    """Random values, locations and weights, and an output gradient; points lie near a reference, as after training."""
    generator = torch.Generator().manual_seed(0)
    layout = (batch, queries, HEADS, LEVELS, POINTS)
    value = torch.randn(batch, sum(h * w for h, w in shapes), HEADS, DIM, generator=generator)
    near = torch.randn(*layout, 2, generator=generator) * 0.05
    place = torch.rand(batch, queries, 1, 1, 1, 2, generator=generator) + near
    weights = torch.rand(layout, generator=generator)
    slope = torch.randn(batch, queries, HEADS * DIM, generator=generator)
    if device.startswith("cuda"):
        value = value.bfloat16()
    return [x.to(device).requires_grad_(backward) for x in (value, place, weights)], slope.to(device)


def _call(
    sample: Sampler, shapes: list[tuple[int, int]], inputs: tuple[list[Tensor], Tensor], backward: bool
) -> Callable[[int], object]:
    (value, place, weights), slope = inputs

    def work(_: int) -> object:
        out = sample(value, shapes, place, weights)
        return torch.autograd.grad(out, (value, place, weights), slope) if backward else out

    return work


def difference(
    samplers: Mapping[str, Sampler], shapes: list[tuple[int, int]], inputs: tuple[list[Tensor], Tensor]
) -> float:
    """The largest relative difference, in norm, between the results and gradients of two samplers.

    Individual gradients of locations may differ: rounding decides on which side of a pixel centre a point lies.

    Raises:
        FXError: the difference is larger than bfloat16 explains.
    """
    leaves, slope = inputs
    found = []
    for sample in samplers.values():
        copies = [x.detach().requires_grad_() for x in leaves]
        out = sample(copies[0], shapes, *copies[1:])
        found.append([x.float() for x in (out.detach(), *torch.autograd.grad(out, copies, slope))])
    off = max(float((have - want).norm() / want.norm()) for want, have in zip(*found, strict=True))
    if not off < MOST:
        raise FXError(f"{' and '.join(samplers)} disagree: results or gradients differ by {off:.2g}")
    return off
