"""The set loss as the paper's public code computes it: layer by layer, image by image, with IoUs of all pairs.

The values equal those of `fx_d2.losses.set_losses`; a test compares them in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from fx_d2.layers.boxes import inverse_sigmoid, to_corners
from fx_d2.losses import SetLossWeights
from fx_d2.modeling.detr.decoder import LocDecoder
from fx_d2.modeling.detr.denoising import NoisedQueries
from fx_d2.modeling.detr.encoder import Memory
from fx_d2.modeling.localization import LocSettings

Pairs = list[tuple[Tensor, Tensor]]
"""Per image the matched queries and targets, int64."""


def set_criterion(
    decoder: LocDecoder, memory: Memory, instances: Sequence[Instances], settings: LocSettings
) -> dict[str, Tensor]:
    """`modeling.localization.localization_losses` under the same names; at least one image must have a box."""
    device, weights = memory.tokens.device, settings.weights
    labels = [x.gt_classes.to(device) + settings.first_class for x in instances]
    boxes = [_relative(x).to(device) for x in instances]
    noised = noise_truth(labels, boxes, min(decoder.num_queries, memory.tokens.shape[1]), decoder.num_classes, settings)
    out = decoder(memory, noised)
    extra, norm = noised.labels.shape[1], float(sum(map(len, labels)))
    sums: dict[str, Tensor] = {}
    for logits, places in zip(out.logits, out.boxes, strict=True):
        parts = {"": (logits[:, extra:], places[:, extra:])}
        if noised.groups:
            parts["dn_"] = (logits[:, :extra], places[:, :extra])
        for prefix, (part, where) in parts.items():
            known = _known_pairs(labels, noised.groups) if prefix else None
            pairs = match(part, where, labels, boxes, weights) if known is None else known
            scale = norm * (noised.groups if prefix else 1)
            _add(sums, prefix, layer_losses(part, where, labels, boxes, pairs, scale, weights))
    pairs = match(out.proposal_logits, out.proposal_boxes, labels, boxes, weights)
    last = layer_losses(out.proposal_logits, out.proposal_boxes, labels, boxes, pairs, norm, weights)
    return sums | {f"enc_{key}": settings.proposal_weight * value for key, value in last.items()}


def noise_truth(
    labels: Sequence[Tensor], boxes: Sequence[Tensor], num_queries: int, num_classes: int, settings: LocSettings
) -> NoisedQueries:
    """Denoising queries in fx_d2's layout, (groups, positive or negative, box), sampled image by image."""
    device, batch, width = labels[0].device, len(labels), max(map(len, labels))
    groups = max(settings.dn_number // width, 1) if settings.dn_number else 0
    classes = torch.zeros(batch, groups, 2, width, dtype=torch.int64, device=device)
    places = torch.zeros(batch, groups, 2, width, 4, device=device)
    real = torch.zeros(batch, groups, 2, width, dtype=torch.bool, device=device)
    for image, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        count = len(label)
        drawn = label.repeat(groups, 2, 1)
        flipped = torch.rand(drawn.shape, device=device) < settings.dn_label_noise * 0.5
        classes[image, ..., :count] = torch.where(flipped, torch.randint_like(drawn, 0, num_classes), drawn)
        reach = torch.rand(groups, 2, count, 4, device=device)
        reach[:, 1] += 1
        sign = torch.randint_like(reach, 0, 2) * 2 - 1
        half = (box[:, 2:] / 2).repeat(1, 2)
        corners = (to_corners(box) + sign * reach * half * settings.dn_box_noise).clamp(0, 1)
        places[image, ..., :count, :] = inverse_sigmoid(box_convert(corners, "xyxy", "cxcywh"))
        real[image, ..., :count] = True
    size, extra = 2 * width, 2 * width * groups
    blocked = torch.zeros(extra + num_queries, extra + num_queries, dtype=torch.bool, device=device)
    blocked[extra:, :extra] = True
    for first in range(0, extra, size):
        blocked[first : first + size, :first] = True
        blocked[first : first + size, first + size : extra] = True
    return NoisedQueries(classes.flatten(1), places.flatten(1, 3), real.flatten(1), blocked, groups)


@torch.no_grad()
def match(
    logits: Tensor, boxes: Tensor, labels: Sequence[Tensor], truth: Sequence[Tensor], weights: SetLossWeights
) -> Pairs:
    """Hungarian matching of one layer, from the costs of all of the batch's queries with all of its targets.

    Args:
        logits: (B, Q, K).
        boxes: (B, Q, 4) (cx, cy, w, h).
        labels: (T_i,) of each image.
        truth: (T_i, 4) of each image.
        weights: matching costs.
    """
    batch, queries = logits.shape[:2]
    prob, places = logits.flatten(0, 1).sigmoid(), boxes.flatten(0, 1)
    every, known = torch.cat(list(labels)), torch.cat(list(truth)).to(places.dtype)
    alpha, gamma = weights.focal_alpha, weights.focal_gamma
    negative = (1 - alpha) * prob**gamma * -(1 - prob + 1e-8).log()
    positive = alpha * (1 - prob) ** gamma * -(prob + 1e-8).log()
    cost = weights.cost_class * (positive[:, every] - negative[:, every])
    cost = cost + weights.cost_l1 * torch.cdist(places, known, p=1)
    cost = cost - weights.cost_giou * generalized_box_iou(to_corners(places), to_corners(known))
    blocks = cost.view(batch, queries, -1).cpu().split([len(row) for row in labels], dim=-1)
    found = [linear_sum_assignment(block[image]) for image, block in enumerate(blocks)]
    return [(torch.as_tensor(q, device=boxes.device), torch.as_tensor(t, device=boxes.device)) for q, t in found]


def layer_losses(
    logits: Tensor,
    boxes: Tensor,
    labels: Sequence[Tensor],
    truth: Sequence[Tensor],
    pairs: Pairs,
    normalizer: float,
    weights: SetLossWeights,
) -> dict[str, Tensor]:
    """Weighted focal, L1 and GIoU losses of one layer; arguments as for `match`."""
    image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)])
    query = torch.cat([query for query, _ in pairs])
    classes = torch.cat([row[target] for row, (_, target) in zip(labels, pairs, strict=True)])
    known = torch.cat([row[target] for row, (_, target) in zip(truth, pairs, strict=True)]).to(boxes.dtype)
    # One extra column stands for background and is then dropped.
    index = torch.full(logits.shape[:2], logits.shape[-1], dtype=torch.int64, device=logits.device)
    index[image, query] = classes
    onehot = F.one_hot(index, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)
    prob = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, onehot, reduction="none")
    right = prob * onehot + (1 - prob) * (1 - onehot)
    alpha = weights.focal_alpha * onehot + (1 - weights.focal_alpha) * (1 - onehot)
    focal = (alpha * entropy * (1 - right) ** weights.focal_gamma).mean(1).sum() * logits.shape[1]
    places = boxes[image, query]
    overlap = torch.diag(generalized_box_iou(to_corners(places), to_corners(known)))
    return {
        "class": weights.loss_class * focal / normalizer,
        "l1": weights.loss_l1 * F.l1_loss(places, known, reduction="none").sum() / normalizer,
        "giou": weights.loss_giou * (1 - overlap).sum() / normalizer,
    }


def _known_pairs(labels: Sequence[Tensor], groups: int) -> Pairs:
    """Per image the positive denoising queries and their source targets."""
    width, pairs = max(map(len, labels)), []
    for label in labels:
        slot = torch.arange(len(label), device=label.device)
        first = torch.arange(groups, device=label.device) * 2 * width
        pairs.append(((first[:, None] + slot).flatten(), slot.repeat(groups)))
    return pairs


def _relative(truth: Instances) -> Tensor:
    """Boxes as (cx, cy, w, h) relative to the image."""
    height, width = truth.image_size
    corners = truth.gt_boxes.tensor
    return box_convert(corners / corners.new_tensor((width, height, width, height)), "xyxy", "cxcywh")


def _add(sums: dict[str, Tensor], prefix: str, losses: dict[str, Tensor]) -> None:
    for key, value in losses.items():
        sums[prefix + key] = sums[prefix + key] + value if prefix + key in sums else value
