"""The localization branch: builders of encoder and decoders, losses in training, boxes at inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

from fx_d2.layers.boxes import to_corners
from fx_d2.layers.deformable_attention import use_sampler
from fx_d2.layers.precision import at_least_float32
from fx_d2.losses.set_prediction import SetLossWeights, Targets, match_queries, set_losses
from fx_d2.modeling.detr.decoder import DecoderOutput, DecoderStack, LocDecoder
from fx_d2.modeling.detr.denoising import NoisedQueries, denoising_match, noise_targets
from fx_d2.modeling.detr.encoder import LocEncoder, Memory
from fx_d2.structures import FXError


@dataclass(frozen=True)
class LocSettings:
    """Hyper-parameters of the branch; see MODEL.LOC in fx_d2/config.py."""

    weights: SetLossWeights
    proposal_weight: float
    dn_number: int
    dn_label_noise: float
    dn_box_noise: float
    num_select: int
    first_class: int = 0


def build_settings(cfg: CfgNode) -> LocSettings:
    """LocSettings from MODEL.LOC."""
    node = cfg.MODEL.LOC
    weights = SetLossWeights(
        loss_class=node.LOSS.CLASS,
        loss_l1=node.LOSS.L1,
        loss_giou=node.LOSS.GIOU,
        cost_class=node.COST.CLASS,
        cost_l1=node.COST.L1,
        cost_giou=node.COST.GIOU,
        focal_alpha=node.FOCAL_ALPHA,
        focal_gamma=node.FOCAL_GAMMA,
        giou_eps=node.GIOU_EPS,
    )
    return LocSettings(
        weights,
        node.LOSS.ENC,
        node.DN_NUMBER,
        node.DN_LABEL_NOISE,
        node.DN_BOX_NOISE,
        node.NUM_SELECT,
        node.FIRST_CLASS,
    )


def build_encoder(cfg: CfgNode, in_channels: Sequence[int]) -> LocEncoder:
    """The shared encoder for the backbone's channels."""
    node = cfg.MODEL.LOC
    encoder = LocEncoder(
        in_channels=in_channels,
        dim=node.HIDDEN_DIM,
        heads=node.NUM_HEADS,
        points=node.NUM_POINTS,
        ffn_dim=node.FFN_DIM,
        layers=node.ENC_LAYERS,
        temperature=node.TOKEN_TEMPERATURE,
        decoder_stack=DecoderStack(**_stack_sizes(cfg, len(in_channels) + 1)) if node.SHARED_DECODER else None,
        grad_checkpointing=node.GRAD_CHECKPOINTING,
    )
    return use_sampler(encoder, node.SAMPLER, torch.device(cfg.MODEL.DEVICE).type)


def _stack_sizes(cfg: CfgNode, levels: int) -> dict[str, int]:
    """Arguments of a decoder's layers, shared or not."""
    node = cfg.MODEL.LOC
    return {
        "dim": node.HIDDEN_DIM,
        "heads": node.NUM_HEADS,
        "levels": levels,
        "points": node.NUM_POINTS,
        "ffn_dim": node.FFN_DIM,
        "layers": node.DEC_LAYERS,
    }


def build_decoder(cfg: CfgNode, num_classes: int, levels: int) -> LocDecoder:
    """The decoder of a dataset with `num_classes` box classes.

    Raises:
        FXError: too few logits for the classes, or too few label embeddings for the logits.
    """
    node = cfg.MODEL.LOC
    logits = node.NUM_LOGITS or node.FIRST_CLASS + num_classes
    rows = node.LABEL_ROWS or logits
    if not 0 <= node.FIRST_CLASS <= logits - num_classes or rows < logits:
        raise FXError(
            f"{num_classes} box classes need columns {node.FIRST_CLASS} to {node.FIRST_CLASS + num_classes - 1} of "
            f"{logits} logits and {rows} label embeddings: raise MODEL.LOC.NUM_LOGITS and LABEL_ROWS, or leave them 0"
        )
    decoder = LocDecoder(
        num_classes=logits,
        num_queries=node.NUM_QUERIES,
        **_stack_sizes(cfg, levels),
        box_temperature=node.BOX_TEMPERATURE,
        tie_box_heads=node.TIE_BOX_HEADS,
        label_rows=rows,
        rank_all_tokens=node.RANK_ALL_TOKENS,
        shared_stack=node.SHARED_DECODER,
        grad_checkpointing=node.GRAD_CHECKPOINTING,
    )
    return use_sampler(decoder, node.SAMPLER, torch.device(cfg.MODEL.DEVICE).type)


def localization_losses(
    decoder: LocDecoder, memory: Memory, targets: Targets, settings: LocSettings
) -> dict[str, Tensor]:
    """The DINO losses of one batch: final and auxiliary layers, denoising queries, encoder proposals.

    Args:
        decoder: the dataset's decoder, in training mode.
        memory: of the batch.
        targets: the batch's boxes, possibly none.
        settings: hyper-parameters.

    Returns:
        Weighted scalars "class", "l1" and "giou", the same prefixed with "enc_" and, with denoising, with "dn_".
    """
    if settings.first_class:
        targets = replace(targets, labels=targets.labels + settings.first_class)
    noised = noise_targets(
        targets,
        num_queries=min(decoder.num_queries, memory.tokens.shape[1]),
        num_classes=decoder.num_classes,
        pairs=settings.dn_number,
        label_noise=settings.dn_label_noise,
        box_noise=settings.dn_box_noise,
    )
    return criterion(decoder(memory, noised), targets, noised, settings.weights, settings.proposal_weight)


def criterion(
    out: DecoderOutput, targets: Targets, noised: NoisedQueries, weights: SetLossWeights, proposal_weight: float
) -> dict[str, Tensor]:
    """`localization_losses` of a decoder's output.

    Args:
        out: the decoder's output, denoising queries first.
        targets: ground truth, labels as columns of the logits.
        noised: the denoising queries.
        weights: of losses and matching costs.
        proposal_weight: of the proposals' losses.
    """
    norm = targets.normalizer()
    extra = noised.labels.shape[1]
    (known_logits, logits), (known_boxes, boxes) = (
        x.split([extra, x.shape[2] - extra], dim=2) for x in (out.logits, out.boxes)
    )
    # Proposals count as one more layer, even with weight 0: their heads must take part in the backward pass.
    logits = torch.cat((logits, out.proposal_logits[None]))
    boxes = torch.cat((boxes, out.proposal_boxes[None]))
    terms = set_losses(logits, boxes, targets, match_queries(logits, boxes, targets, weights), norm, weights)
    losses = {key: value[:-1].sum() for key, value in terms.items()}
    if noised.groups:
        match = denoising_match(targets, noised, len(known_logits))
        known = set_losses(known_logits, known_boxes, targets, match, norm * noised.groups, weights)
        losses |= {f"dn_{key}": value.sum() for key, value in known.items()}
    return losses | {f"enc_{key}": proposal_weight * value[-1] for key, value in terms.items()}


def best_pairs(out: DecoderOutput, num_select: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `num_select` best (query, logit) pairs of each image, without NMS, as in DINO.

    Args:
        out: of a decoder without denoising queries.
        num_select: maximum number of pairs.

    Returns:
        Best first: scores (B, N) in [0, 1], columns of the logits (B, N), boxes (B, N, 4) as (x1, y1, x2, y2)
        relative to the image, not clipped.
    """
    scores = at_least_float32(out.logits[-1]).sigmoid()
    width = scores.shape[-1]
    best, index = scores.flatten(1).topk(min(num_select, scores[0].numel()), dim=1)
    corners = to_corners(at_least_float32(out.boxes[-1]))
    rows = torch.arange(len(corners), device=corners.device)[:, None]
    return best, index % width, corners[rows, index // width]


def select_boxes(
    out: DecoderOutput, sizes: Sequence[tuple[int, int]], num_select: int, classes: range | None = None
) -> list[Instances]:
    """`best_pairs` as Instances, in pixels and clipped to the image.

    Args:
        out: of a decoder without denoising queries.
        sizes: (height, width) in pixels of each image, to which boxes are scaled.
        num_select: maximum number of boxes, before `classes` is applied.
        classes: columns of the logits that are the dataset's classes, in their order; None = all. Other columns compete
            for the `num_select` slots, as in the reference, but are not returned.

    Returns:
        Per image Instances with pred_boxes (x1, y1, x2, y2), scores in [0, 1], pred_classes; best first.
    """
    columns = range(out.logits.shape[-1]) if classes is None else classes
    results = []
    for (height, width), *found in zip(sizes, *best_pairs(out, num_select), strict=True):
        score, column, corners = found
        if len(columns) < out.logits.shape[-1]:
            real = (column >= columns.start) & (column < columns.stop)
            score, column, corners = score[real], column[real], corners[real]
        boxes = Boxes(corners * corners.new_tensor((width, height, width, height)))
        boxes.clip((height, width))
        results.append(Instances((height, width), pred_boxes=boxes, scores=score, pred_classes=column - columns.start))
    return results
