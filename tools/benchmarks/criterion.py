"""The localization criterion, forward and backward, beside one written as DETR's and DINO's public code writes it.

The baseline matches each layer's queries with the boxes of all images in one table, of which only the blocks of an
image's own pairs are used, and takes the overlap of matched boxes from the diagonal of a table of all pairs; its seven
outputs and the denoising part of six follow one after the other. Both sides get the same numbers, and their losses are
compared before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from benchmarks.timing import ratio_table, take_turns
from benchmarks.world import repetitions
from fx_d2.losses import Match, SetLossWeights, Targets, match_queries, set_losses

HELP = "the localization criterion and its matching, beside DETR's way of writing them"
BASELINE = "layer by layer"
LAYERS, CLASSES = 6, 14
"""Decoder layers of DINO; classes of the largest localization row. The proposals are one more output."""
WEIGHTS = SetLossWeights()


@dataclass(frozen=True)
class Problem:
    """What a decoder said and what it should have said.

    Attributes:
        logits: (L + 1, B, Q, K), the proposals last.
        boxes: (L + 1, B, Q, 4).
        known_logits: (L, B, P, K) of the denoising queries.
        known_boxes: (L, B, P, 4).
        targets: the truth, equally many boxes an image.
        groups: of denoising queries; in each, an image's positives, then its negatives.
    """

    logits: Tensor
    boxes: Tensor
    known_logits: Tensor
    known_boxes: Tensor
    targets: Targets
    groups: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.set_defaults(batch=24, threads=1)
    parser.add_argument("--boxes", type=int, default=3, help="boxes an image, at least 1 (default 3)")
    parser.add_argument("--queries", type=int, default=900, help="learned queries (default 900)")
    parser.add_argument("--pairs", type=int, default=100, help="denoising pairs an image (default 100)")


def run(args: argparse.Namespace) -> str:
    """Compare, then measure; the report."""
    torch.manual_seed(0)
    problem = draw(args.batch, args.boxes, args.queries, args.pairs)
    ours, theirs = (float(make(problem).detach()) for make in (criterion, plain_criterion))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0.0)
    parts = [
        f"{args.batch} images of {args.boxes} boxes, {args.queries} queries, {problem.groups} groups of denoising "
        f"queries; items are images, seconds CPU seconds\nloss {ours:.4f}, {BASELINE} {theirs:.4f}"
    ]
    matching: dict[str, Callable[[int], object]] = {
        BASELINE: lambda _: plain_matching(problem),
        "fx_d2": lambda _: match_queries(problem.logits, problem.boxes, problem.targets, WEIGHTS),
    }
    whole: dict[str, Callable[[int], object]] = {
        BASELINE: lambda _: plain_criterion(problem).backward(),
        "fx_d2": lambda _: criterion(problem).backward(),
    }
    for title, candidates in (("matching", matching), ("criterion, forward and backward", whole)):
        table = ratio_table(take_turns(candidates, repetitions(args, 9)), BASELINE, args.batch)
        parts.append(f"{title}\n{table}")
    return "\n\n".join(parts)


def draw(batch: int, boxes: int, queries: int, pairs: int) -> Problem:
    """Random answers and truth."""

    def some(*shape: int) -> Tensor:
        return torch.cat((0.3 + 0.4 * torch.rand(*shape, 2), 0.05 + 0.3 * torch.rand(*shape, 2)), dim=-1)

    groups = max(pairs // boxes, 1)
    extra = groups * 2 * boxes
    truth = Targets.of_batch(torch.randint(0, CLASSES, (batch * boxes,)), some(batch * boxes), (boxes,) * batch)
    return Problem(
        torch.randn(LAYERS + 1, batch, queries, CLASSES, requires_grad=True),
        some(LAYERS + 1, batch, queries).requires_grad_(),
        torch.randn(LAYERS, batch, extra, CLASSES, requires_grad=True),
        some(LAYERS, batch, extra).requires_grad_(),
        truth,
        groups,
    )


def criterion(problem: Problem) -> Tensor:
    """The sum of all losses as fx_d2 computes it."""
    targets, norm = problem.targets, problem.targets.normalizer()
    match = match_queries(problem.logits, problem.boxes, targets, WEIGHTS)
    terms = [*set_losses(problem.logits, problem.boxes, targets, match, norm, WEIGHTS).values()]
    queries, target = _known(problem)
    layers, batch, extra = problem.known_logits.shape[:3]
    rows = (torch.arange(layers)[:, None] * batch + targets.image[target]) * extra + queries
    match = Match(rows.flatten(), target.repeat(layers))
    known = (problem.known_logits, problem.known_boxes)
    terms += set_losses(*known, targets, match, norm * problem.groups, WEIGHTS).values()
    return torch.cat(terms).sum()


def plain_criterion(problem: Problem) -> Tensor:
    """The same sum, output by output."""
    norm = problem.targets.normalizer()
    total = torch.zeros(())
    for logits, boxes, match in zip(problem.logits, problem.boxes, plain_matching(problem), strict=True):
        total = total + _plain_losses(logits, boxes, problem.targets, match, norm)
    queries, target = _known(problem)
    match = (problem.targets.image[target], queries, target)
    for logits, boxes in zip(problem.known_logits, problem.known_boxes, strict=True):
        total = total + _plain_losses(logits, boxes, problem.targets, match, norm * problem.groups)
    return total


@torch.no_grad()
def plain_matching(problem: Problem) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, queries and targets of each output."""
    targets, found = problem.targets, []
    truth = box_convert(targets.boxes, "cxcywh", "xyxy")
    for logits, boxes in zip(problem.logits, problem.boxes, strict=True):
        batch, queries = logits.shape[:2]
        prob, flat = logits.flatten(0, 1).sigmoid(), boxes.flatten(0, 1)
        negative = (1 - WEIGHTS.focal_alpha) * prob**WEIGHTS.focal_gamma * -(1 - prob + 1e-8).log()
        positive = WEIGHTS.focal_alpha * (1 - prob) ** WEIGHTS.focal_gamma * -(prob + 1e-8).log()
        cost = WEIGHTS.cost_class * (positive[:, targets.labels] - negative[:, targets.labels])
        cost = cost + WEIGHTS.cost_l1 * torch.cdist(flat, targets.boxes, p=1)
        cost = cost - WEIGHTS.cost_giou * generalized_box_iou(box_convert(flat, "cxcywh", "xyxy"), truth)
        table = cost.view(batch, queries, -1).cpu()
        image, query, target, start = [], [], [], 0
        for i, block in enumerate(table.split(list(targets.counts), -1)):
            row, column = (torch.as_tensor(x) for x in linear_sum_assignment(block[i]))
            image.append(torch.full_like(row, i))
            query.append(row)
            target.append(start + column)
            start += targets.counts[i]
        found.append((torch.cat(image), torch.cat(query), torch.cat(target)))
    return found


def _plain_losses(
    logits: Tensor, boxes: Tensor, targets: Targets, match: tuple[Tensor, Tensor, Tensor], norm: float
) -> Tensor:
    """The weighted losses of one output, (B, Q, K) and (B, Q, 4)."""
    image, query, target = match
    onehot = torch.zeros_like(logits)
    onehot[image, query, targets.labels[target]] = 1.0
    focal = sigmoid_focal_loss(logits, onehot, WEIGHTS.focal_alpha, WEIGHTS.focal_gamma, reduction="sum")
    predicted, truth = boxes[image, query], targets.boxes[target]
    corners = (box_convert(x, "cxcywh", "xyxy") for x in (predicted, truth))
    apart = (1 - torch.diag(generalized_box_iou(*corners))).sum()
    distance = (predicted - truth).abs().sum()
    return (WEIGHTS.loss_class * focal + WEIGHTS.loss_l1 * distance + WEIGHTS.loss_giou * apart) / norm


def _known(problem: Problem) -> tuple[Tensor, Tensor]:
    """Denoising queries that answer for a box, numbered within their image, and their targets."""
    targets = problem.targets
    first = torch.arange(problem.groups)[:, None] * 2 * targets.width
    return (first + targets.slot).flatten(), torch.arange(targets.total).repeat(problem.groups)
