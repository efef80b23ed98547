"""The localization branch around encoder and decoders: losses in training, boxes at inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

from fx_d2.layers.boxes import to_corners
from fx_d2.losses.set_prediction import SetLossWeights, Targets, match_queries, set_losses
from fx_d2.modeling.detr.decoder import DecoderOutput, LocDecoder
from fx_d2.modeling.detr.denoising import NoisedQueries, denoising_match, noise_targets
from fx_d2.modeling.detr.encoder import LocEncoder, Memory


@dataclass(frozen=True)
class LocSettings:
    """Numbers of the branch that are not weights; meanings in fx_d2.config, MODEL.LOC."""

    weights: SetLossWeights
    proposal_weight: float
    dn_number: int
    dn_label_noise: float
    dn_box_noise: float
    num_select: int


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
    )
    return LocSettings(weights, node.LOSS.ENC, node.DN_NUMBER, node.DN_LABEL_NOISE, node.DN_BOX_NOISE, node.NUM_SELECT)


def build_encoder(cfg: CfgNode, in_channels: Sequence[int]) -> LocEncoder:
    """The shared encoder for the trunk's channels."""
    node = cfg.MODEL.LOC
    return LocEncoder(
        in_channels=in_channels,
        dim=node.HIDDEN_DIM,
        heads=node.NUM_HEADS,
        points=node.NUM_POINTS,
        ffn_dim=node.FFN_DIM,
        layers=node.ENC_LAYERS,
        temperature=node.TOKEN_TEMPERATURE,
    )


def build_decoder(cfg: CfgNode, num_classes: int, levels: int) -> LocDecoder:
    """One dataset's decoder."""
    node = cfg.MODEL.LOC
    return LocDecoder(
        num_classes=num_classes,
        num_queries=node.NUM_QUERIES,
        dim=node.HIDDEN_DIM,
        heads=node.NUM_HEADS,
        levels=levels,
        points=node.NUM_POINTS,
        ffn_dim=node.FFN_DIM,
        layers=node.DEC_LAYERS,
        box_temperature=node.BOX_TEMPERATURE,
        tie_box_heads=node.TIE_BOX_HEADS,
    )


def localization_losses(
    decoder: LocDecoder, memory: Memory, instances: Sequence[Instances], settings: LocSettings
) -> dict[str, Tensor]:
    """The DINO losses of one batch: final and auxiliary layers, denoising queries, encoder proposals.

    Args:
        decoder: the dataset's decoder, in training mode.
        memory: of the batch.
        instances: `gt_boxes` (pixels) and `gt_classes` per image; may be empty.
        settings: the branch's numbers.

    Returns:
        {"class", "l1", "giou"} and the same with "enc_" and, with denoising, "dn_" in front, weighted scalars.
    """
    targets = Targets.from_instances(instances, memory.tokens.device)
    noised = noise_targets(
        targets,
        num_queries=min(decoder.num_queries, memory.tokens.shape[1]),
        num_classes=decoder.num_classes,
        pairs=settings.dn_number,
        label_noise=settings.dn_label_noise,
        box_noise=settings.dn_box_noise,
    )
    out = decoder(memory, noised)
    weights, norm = settings.weights, targets.normalizer()
    extra = noised.labels.shape[1]
    logits, boxes = out.logits[:, :, extra:], out.boxes[:, :, extra:]
    losses = set_losses(logits, boxes, targets, match_queries(logits, boxes, targets, weights), norm, weights)
    if noised.groups:
        losses |= _prefixed("dn", _denoising_losses(out, noised, targets, norm, weights))
    # Computed even with weight 0: the proposal heads must take part in the backward pass for DDP.
    logits, boxes = out.proposal_logits[None], out.proposal_boxes[None]
    terms = set_losses(logits, boxes, targets, match_queries(logits, boxes, targets, weights), norm, weights)
    return losses | _prefixed("enc", {key: settings.proposal_weight * value for key, value in terms.items()})


def _denoising_losses(
    out: DecoderOutput, noised: NoisedQueries, targets: Targets, norm: float, weights: SetLossWeights
) -> dict[str, Tensor]:
    extra = noised.labels.shape[1]
    match = denoising_match(targets, noised, len(out.logits))
    return set_losses(out.logits[:, :, :extra], out.boxes[:, :, :extra], targets, match, norm * noised.groups, weights)


def _prefixed(prefix: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}_{key}": value for key, value in losses.items()}


def select_boxes(out: DecoderOutput, sizes: Sequence[tuple[int, int]], num_select: int) -> list[Instances]:
    """The best `num_select` of queries x classes of each image, without suppression, as DINO does.

    Args:
        out: of a decoder without denoising queries.
        sizes: (height, width) in pixels in which the boxes are wanted, per image.
        num_select: how many at most.

    Returns:
        Per image Instances with pred_boxes (x1, y1, x2, y2), scores in [0, 1], pred_classes; best first.
    """
    scores = out.logits[-1].float().sigmoid()
    num_classes = scores.shape[-1]
    best, index = scores.flatten(1).topk(min(num_select, scores[0].numel()), dim=1)
    corners = to_corners(out.boxes[-1].float())
    results = []
    for i, (height, width) in enumerate(sizes):
        boxes = Boxes(corners[i, index[i] // num_classes] * corners.new_tensor((width, height, width, height)))
        boxes.clip((height, width))
        classes = index[i] % num_classes
        results.append(Instances((height, width), pred_boxes=boxes, scores=best[i], pred_classes=classes))
    return results
