"""Deformable attention on CPUs: torch's operators beside the C++ library, for the model's sizes.

Encoder layers have a query for each token, decoder layers one for each learned and denoising query. Always on the CPU.
With --allocator default, glibc returns large tensors to the system at each free, which costs the operators that make
most of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch

from benchmarks.timing import ratio_table, take_turns
from benchmarks.world import repetitions
from fx_d2.layers.deformable_attention import sample_and_sum
from fx_d2.layers.deformable_cpu import library_digest, sample_and_sum_cpu
from fx_d2.layers.deformable_op import Sampler

HELP = "deformable attention: torch's operators beside the C++ library"
BASELINE = "torch"
HEADS, DIM, LEVELS, POINTS = 8, 32, 4, 4
"""Of the default model."""
DECODER_QUERIES = 300 + 198
"""Learned queries, and denoising queries for three boxes an image."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options: none of its own, one thread."""
    parser.set_defaults(threads=1)


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    library_digest()  # compiled before the clock runs
    side = args.size or (64 if args.quick else 224)
    shapes = [(math.ceil(side / stride),) * 2 for stride in (8, 16, 32, 64)]
    tokens = sum(h * w for h, w in shapes)
    parts = [f"{args.batch} images of {side} pixels, {torch.get_num_threads()} threads; seconds are CPU seconds"]
    for title, queries in (("encoder layer", tokens), ("decoder layer", DECODER_QUERIES)):
        for backward in (False, True):
            candidates = _candidates(shapes, args.batch, queries, backward)
            times = take_turns(candidates, repetitions(args, 15))
            kind = "forward and backward" if backward else "forward"
            parts.append(f"{title}, {queries} queries, {kind}\n\n{ratio_table(times, BASELINE, args.batch)}")
    return "\n\n".join(parts)


def _candidates(
    shapes: list[tuple[int, int]], batch: int, queries: int, backward: bool
) -> dict[str, Callable[[int], object]]:
    """The rows of a table, on the same random inputs: points near their query's reference, as trained ones are."""
    generator = torch.Generator().manual_seed(0)
    layout = (batch, queries, HEADS, LEVELS, POINTS)
    value = torch.randn(batch, sum(h * w for h, w in shapes), HEADS, DIM, generator=generator)
    near = torch.randn(*layout, 2, generator=generator) * 0.05
    place = torch.rand(batch, queries, 1, 1, 1, 2, generator=generator) + near
    weights = torch.rand(layout, generator=generator)
    slope = torch.randn(batch, queries, HEADS * DIM, generator=generator)
    inputs = [x.requires_grad_(backward) for x in (value, place, weights)]

    def work(sample: Sampler) -> None:
        out = sample(inputs[0], shapes, inputs[1], inputs[2])
        if backward:
            torch.autograd.grad(out, inputs, slope)

    return {BASELINE: lambda _: work(sample_and_sum), "C++": lambda _: work(sample_and_sum_cpu)}
