"""Features for segmentation that are stronger where the model's own boxes are (Foundation X+)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor

from fx_d2.layers.precision import at_least_float32
from fx_d2.modeling.detr.decoder import DecoderOutput
from fx_d2.structures import FXError

MOST_BOXES = 100
"""Boxes of an image that count, the best; it bounds the memory of the maps."""


@dataclass(frozen=True)
class RegionSettings:
    """MODEL.SEG.REGION: how much boxes weigh, from which score they count, by how much their area grows."""

    weight: float
    score: float
    area: float


@dataclass(frozen=True)
class Regions:
    """Boxes of a batch, (B, N, 4) as (cx, cy, w, h) in parts of each image's sides, already grown.

    Attributes:
        boxes: see above.
        kept: (B, N) bool, those that count.
        ratios: (B, 2) share of the canvas's width and height that is image.
    """

    boxes: Tensor
    kept: Tensor
    ratios: Tensor


def build_regions(cfg: CfgNode) -> RegionSettings:
    """Settings from MODEL.SEG.REGION; FXError for values that make no sense."""
    node = cfg.MODEL.SEG.REGION
    if not 0 <= node.WEIGHT <= 1 or not 0 <= node.SCORE < 1 or node.AREA <= 0:
        raise FXError(f"MODEL.SEG.REGION {dict(node)}: WEIGHT is in [0, 1], SCORE in [0, 1), AREA above 0")
    return RegionSettings(node.WEIGHT, node.SCORE, node.AREA)


def find_regions(out: DecoderOutput, columns: range, valid_ratios: Tensor, settings: RegionSettings) -> Regions:
    """The boxes that count: those whose best class scores above the threshold.

    Args:
        out: of a decoder without denoising queries; the last layer's boxes are taken.
        columns: of the logits that stand for the dataset's classes.
        valid_ratios: (B, levels, 2) of the memory.
        settings: thresholds.
    """
    scores = at_least_float32(out.logits[-1])[..., columns.start : columns.stop].sigmoid().amax(-1)
    best, index = scores.topk(min(MOST_BOXES, scores.shape[1]), dim=1)
    boxes = at_least_float32(out.boxes[-1]).gather(1, index[..., None].expand(-1, -1, 4))
    grown = torch.cat((boxes[..., :2], boxes[..., 2:] * settings.area**0.5), dim=-1)
    return Regions(grown, best > settings.score, at_least_float32(valid_ratios[:, 0]))


def region_map(regions: Regions, size: tuple[int, int]) -> Tensor:
    """How near each position is to a box: 1 inside, outside it falls as a Gaussian of the distance.

    The deviation is 1.5 times the box's longer side, at most the image's side (the public code's choice); distances
    are in parts of the image's sides. Where boxes compete the nearest counts; an image without box is 1 everywhere.

    Args:
        regions: of the batch.
        size: (height, width) of the map.

    Returns:
        float32 (B, 1, H, W) in (0, 1].
    """
    boxes, kept = regions.boxes, regions.kept
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    deviation = (1.5 * boxes[..., 2:].amax(-1)).clamp(min=1e-6).clamp(max=1.0)
    squares = []
    for axis, count in ((0, size[1]), (1, size[0])):
        places = (torch.arange(count, device=boxes.device, dtype=boxes.dtype) + 0.5) / count
        places = places / regions.ratios[:, axis, None]
        outside = (places[:, None] - centre[..., axis, None]).abs() - half[..., axis, None]
        squares.append((outside.clamp(min=0) / deviation[..., None]).square())
    # (B, N, H, W), of which the nearest box is kept at once.
    near = torch.exp(-0.5 * (squares[1][..., :, None] + squares[0][..., None, :]))
    best = (near * kept[..., None, None]).amax(1)
    return best.masked_fill(~kept.any(1)[:, None, None], 1.0)[:, None]


def guide_features(features: Mapping[str, Tensor], regions: Regions, weight: float) -> dict[str, Tensor]:
    """Each stage f as (1 - weight) * f + weight * f * map."""
    guided = {}
    for name, x in features.items():
        height, width = x.shape[-2:]
        guided[name] = x * (1 - weight + weight * region_map(regions, (height, width))).to(x.dtype)
    return guided
