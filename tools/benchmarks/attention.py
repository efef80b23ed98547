"""Deformable attention on CPUs: torch's operators beside the C++ library, for the model's sizes.

Encoder layers have a query for each token, decoder layers one for each learned and denoising query. Set
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 for the comparison of arithmetic alone:
glibc otherwise returns large tensors to the system at each free, which costs the operators that make most of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch

from benchmarks.timing import ratio_table, take_turns
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
    """The sub-command's options."""
    parser.add_argument("--side", type=int, default=224, help="side of the images in pixels (default 224)")
    parser.add_argument("--batch", type=int, default=2, help="images (default 2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=15)


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    library_digest()  # compiled before the clock runs
    torch.set_num_threads(args.threads)
    shapes = [(math.ceil(args.side / stride),) * 2 for stride in (8, 16, 32, 64)]
    tokens = sum(h * w for h, w in shapes)
    parts = [f"{args.batch} images of {args.side} pixels, {args.threads} threads; seconds are CPU seconds"]
    for title, queries in (("encoder layer", tokens), ("decoder layer", DECODER_QUERIES)):
        for backward in (False, True):
            candidates = _candidates(shapes, args.batch, queries, backward)
            times = take_turns(candidates, args.repetitions)
            kind = "forward and backward" if backward else "forward"
            parts.append(f"{title}, {queries} queries, {kind}\n{ratio_table(times, BASELINE, args.batch)}")
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
