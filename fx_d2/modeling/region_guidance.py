"""Box-guided segmentation (Foundation X+): features are weighted by their distance to the model's predicted boxes."""

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
"""Highest-scoring boxes used per image; bounds the memory of the maps."""


@dataclass(frozen=True)
class RegionSettings:
    """MODEL.SEG.REGION: weight of the map, score threshold of the boxes, factor by which their area is enlarged."""

    weight: float
    score: float
    area: float


@dataclass(frozen=True)
class Regions:
    """The boxes that guide the segmentation of a batch.

    Attributes:
        boxes: (B, N, 4) (cx, cy, w, h) relative to each image, already enlarged.
        kept: (B, N) bool, True for boxes above the score threshold.
        ratios: (B, 2) fraction of the canvas width and height covered by the image.
    """

    boxes: Tensor
    kept: Tensor
    ratios: Tensor


def build_regions(cfg: CfgNode) -> RegionSettings:
    """Settings from MODEL.SEG.REGION; FXError for values out of range."""
    node = cfg.MODEL.SEG.REGION
    if not 0 <= node.WEIGHT <= 1 or not 0 <= node.SCORE < 1 or node.AREA <= 0:
        raise FXError(f"MODEL.SEG.REGION {dict(node)}: WEIGHT must be in [0, 1], SCORE in [0, 1), AREA above 0")
    return RegionSettings(node.WEIGHT, node.SCORE, node.AREA)


def find_regions(out: DecoderOutput, columns: range, valid_ratios: Tensor, settings: RegionSettings) -> Regions:
    """Regions of the boxes whose best class scores above the threshold.

    Args:
        out: of a decoder without denoising queries; the last layer's boxes are used.
        columns: of the logits that are the dataset's classes.
        valid_ratios: (B, levels, 2) of the memory.
        settings: threshold and enlargement.
    """
    scores = at_least_float32(out.logits[-1])[..., columns.start : columns.stop].sigmoid().amax(-1)
    best, index = scores.topk(min(MOST_BOXES, scores.shape[1]), dim=1)
    boxes = at_least_float32(out.boxes[-1]).gather(1, index[..., None].expand(-1, -1, 4))
    grown = torch.cat((boxes[..., :2], boxes[..., 2:] * settings.area**0.5), dim=-1)
    return Regions(grown, best > settings.score, at_least_float32(valid_ratios[:, 0]))


def region_map(regions: Regions, size: tuple[int, int]) -> Tensor:
    """Proximity of each position to a box: 1 inside, outside a Gaussian of the distance.

    The standard deviation is 1.5 times the box's longer side, at most the image's side (as in the public code);
    distances are relative to the image's sides. Each position takes its largest value over boxes. Images without boxes
    are 1 everywhere.

    Args:
        regions: of the batch.
        size: (height, width) of the map.

    Returns:
        float32 (B, 1, H, W) in (0, 1].
    """
    boxes, kept = regions.boxes, regions.kept
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    std = (1.5 * boxes[..., 2:].amax(-1)).clamp(1e-6, 1.0)
    squares = []
    for axis, count in ((0, size[1]), (1, size[0])):
        positions = (torch.arange(count, device=boxes.device, dtype=boxes.dtype) + 0.5) / count
        positions = positions / regions.ratios[:, axis, None]
        outside = (positions[:, None] - centre[..., axis, None]).abs() - half[..., axis, None]
        squares.append((outside.clamp(min=0) / std[..., None]).square())
    # (B, N, H, W), reduced over boxes immediately.
    near = torch.exp(-0.5 * (squares[1][..., :, None] + squares[0][..., None, :]))
    best = (near * kept[..., None, None]).amax(1)
    return best.masked_fill(~kept.any(1)[:, None, None], 1.0)[:, None]


def guide_features(features: Mapping[str, Tensor], regions: Regions, weight: float) -> dict[str, Tensor]:
    """Each stage f becomes (1 - weight) * f + weight * f * map."""
    guided = {}
    for name, x in features.items():
        height, width = x.shape[-2:]
        guided[name] = x * (1 - weight + weight * region_map(regions, (height, width))).to(x.dtype)
    return guided
