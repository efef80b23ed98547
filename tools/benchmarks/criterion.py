"""The localization criterion, forward and backward, compared with one written like DETR's and DINO's public code.

The baseline computes one cost matrix per layer between the queries and the boxes of all images, of which only the
blocks of each image's own pairs are used, and takes the overlap of matched boxes from the diagonal of a matrix of all
pairs. It processes its seven outputs, and the denoising part of six, one after the other. It omits what the public code
computes but does not train with (counts, class errors) and its checks that synchronise with the device. Both sides get
the same inputs, and their losses are compared before anything is timed.
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
from fx_d2.losses import SetLossWeights, Targets, match_queries
from fx_d2.modeling import localization
from fx_d2.modeling.detr.decoder import DecoderOutput
from fx_d2.modeling.detr.denoising import NoisedQueries, noise_targets

HELP = "the localization criterion and its matching, compared with a DETR-style implementation"
BASELINE = "layer by layer"
LAYERS, CLASSES = 6, 14
"""Decoder layers of DINO; the largest number of box classes of a dataset. Proposals are one more output."""
WEIGHTS = SetLossWeights()


@dataclass(frozen=True)
class Problem:
    """A decoder's predictions and the ground truth, with the same number of boxes in every image.

    Attributes:
        out: the decoder's predictions, leaves of the autograd graph.
        targets: the ground truth.
        noised: the denoising queries: in each group, an image's positives, then its negatives.
    """

    out: DecoderOutput
    targets: Targets
    noised: NoisedQueries

    @property
    def extra(self) -> int:
        """Denoising queries per image."""
        return self.noised.labels.shape[1]

    def answers(self) -> tuple[Tensor, Tensor]:
        """Logits (L + 1, B, Q, K) and boxes (L + 1, B, Q, 4) of the learned queries, the proposals last."""
        out = self.out
        pairs = ((out.logits, out.proposal_logits), (out.boxes, out.proposal_boxes))
        logits, boxes = (torch.cat((x[:, :, self.extra :], last[None])) for x, last in pairs)
        return logits, boxes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.set_defaults(batch=24, threads=1)
    parser.add_argument("--boxes", type=int, default=3, help="boxes per image, at least 1 (default 3)")
    parser.add_argument("--queries", type=int, default=900, help="learned queries (default 900)")
    parser.add_argument("--pairs", type=int, default=100, help="denoising pairs per image (default 100)")


def run(args: argparse.Namespace) -> str:
    """Compare, then measure; the report."""
    torch.manual_seed(0)
    problem = draw(args.batch, args.boxes, args.queries, args.pairs)
    ours, theirs = (float(make(problem).detach()) for make in (criterion, plain_criterion))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0.0)
    parts = [
        f"{args.batch} images of {args.boxes} boxes, {args.queries} queries, {problem.noised.groups} groups of "
        f"denoising queries; items are images, seconds CPU seconds\nloss {ours:.4f}, {BASELINE} {theirs:.4f}"
    ]
    answers = tuple(x.detach() for x in problem.answers())
    matching: dict[str, Callable[[int], object]] = {
        BASELINE: lambda _: plain_matching(*answers, problem.targets),
        "fx_d2": lambda _: match_queries(*answers, problem.targets, WEIGHTS),
    }
    whole: dict[str, Callable[[int], object]] = {
        BASELINE: lambda _: plain_criterion(problem).backward(),
        "fx_d2": lambda _: criterion(problem).backward(),
    }
    for title, candidates in (("matching", matching), ("criterion, forward and backward", whole)):
        table = ratio_table(take_turns(candidates, repetitions(args, 9)), BASELINE, args.batch)
        parts.append(f"{title}\n\n{table}")
    return "\n\n".join(parts)


def draw(batch: int, boxes: int, queries: int, pairs: int, dtype: torch.dtype = torch.float32) -> Problem:
    """Random predictions and ground truth."""

    def boxes_of(*shape: int) -> Tensor:
        centre, size = torch.rand(2, *shape, 2, dtype=dtype)
        return torch.cat((0.3 + 0.4 * centre, 0.05 + 0.3 * size), dim=-1)

    def logits_of(*shape: int) -> Tensor:
        return torch.randn(*shape, CLASSES, dtype=dtype, requires_grad=True)

    labels, total = torch.randint(0, CLASSES, (batch * boxes,)), batch * boxes
    targets = Targets.of_batch(labels, boxes_of(total), (boxes,) * batch)
    noise = {"pairs": pairs, "label_noise": 0.5, "box_noise": 1.0}
    noised = noise_targets(targets, num_queries=queries, num_classes=CLASSES, **noise)
    answered = noised.labels.shape[1] + queries
    out = DecoderOutput(
        logits=logits_of(LAYERS, batch, answered),
        boxes=boxes_of(LAYERS, batch, answered).requires_grad_(),
        proposal_logits=logits_of(batch, queries),
        proposal_boxes=boxes_of(batch, queries).requires_grad_(),
        selected=torch.zeros(batch, queries, dtype=torch.int64),
    )
    return Problem(out, targets, noised)


def criterion(problem: Problem) -> Tensor:
    """The sum of all losses as fx_d2 computes it."""
    losses = localization.criterion(problem.out, problem.targets, problem.noised, WEIGHTS, 1.0)
    return torch.stack(list(losses.values())).sum()


def plain_criterion(problem: Problem) -> Tensor:
    """The same sum, output by output."""
    out, targets, norm = problem.out, problem.targets, problem.targets.normalizer()
    total = torch.zeros((), dtype=out.logits.dtype)
    logits, boxes = problem.answers()
    matches = plain_matching(logits.detach(), boxes.detach(), targets)
    for layer_logits, layer_boxes, match in zip(logits, boxes, matches, strict=True):
        total = total + _plain_losses(layer_logits, layer_boxes, targets, match, norm)
    groups = problem.noised.groups
    target = torch.arange(targets.total).repeat(groups)
    first = torch.arange(groups)[:, None] * 2 * targets.width
    match = (targets.image[target], (first + targets.slot).flatten(), target)
    for layer_logits, layer_boxes in zip(
        out.logits[:, :, : problem.extra], out.boxes[:, :, : problem.extra], strict=True
    ):
        total = total + _plain_losses(layer_logits, layer_boxes, targets, match, norm * groups)
    return total


def plain_matching(logits: Tensor, boxes: Tensor, targets: Targets) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Matched (images, queries, targets) of each output."""
    found = []
    truth = box_convert(targets.boxes, "cxcywh", "xyxy")
    for layer_logits, layer_boxes in zip(logits, boxes, strict=True):
        batch, queries = layer_logits.shape[:2]
        prob, flat = layer_logits.flatten(0, 1).sigmoid(), layer_boxes.flatten(0, 1)
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
