"""The shared segmentation decoder: pyramid pooling on the coarsest stage, then a fused feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from fx_d2.layers.group_norm import GroupNorm
from fx_d2.layers.precision import at_least_float32
from fx_d2.structures import FXError

_GROUPS = 32
"""Groups of GroupNorm, as in Detectron2."""


def _norm(name: str, channels: int) -> nn.Module | None:
    """`detectron2.layers.get_norm`; FXError if GroupNorm's groups do not divide the channels."""
    if name != "GN":
        return get_norm(name, channels)
    if channels % _GROUPS:
        raise FXError(
            f"MODEL.SEG.NORM GN has {_GROUPS} groups, which do not divide the {channels} channels of a convolution: "
            "change MODEL.SEG.DIM, the norm, or MODEL.SEG.POOL_BINS (the backbone's channels are divided by its length)"
        )
    return GroupNorm(_GROUPS, channels)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """In at least float32: each position's gradient is a sum over many pixels, accumulated in the input's dtype."""
    full = F.interpolate(at_least_float32(x), size=like.shape[-2:], mode="bilinear", align_corners=True)
    return full.to(x.dtype)


class PyramidPooling(nn.Module):
    """Pyramid pooling (PSPNet): averages over 1x1, 2x2, ... bins, projected and concatenated with the input.

    Args:
        channels: of the input and the output.
        bins: grid sizes; each adds `channels // len(bins)` channels before the fusing convolution.
        norm: a Detectron2 norm name.
        dropout: probability of dropping a channel of the output.
    """

    def __init__(self, *, channels: int, bins: Sequence[int], norm: str, dropout: float) -> None:
        super().__init__()
        self.bins = tuple(bins)
        width = channels // len(self.bins)
        self.stages = nn.ModuleList(
            Conv2d(channels, width, 1, bias=False, norm=_norm(norm, width), activation=F.relu) for _ in self.bins
        )
        total = channels + width * len(self.bins)
        self.bottleneck = Conv2d(
            total, channels, 3, padding=1, bias=False, norm=_norm(norm, channels), activation=F.relu
        )
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        pooled = (stage(F.adaptive_avg_pool2d(x, n)) for n, stage in zip(self.bins, self.stages, strict=True))
        return self.dropout(self.bottleneck(torch.cat([x, *(_resize(part, x) for part in pooled)], dim=1)))


class SegDecoder(nn.Module):
    """All stages of the backbone -> one map at the finest stage's stride.

    The layout is the reference's: unlike FPN, the top-down path is not recursive. Each level adds the upsampled lateral
    of the next coarser one, and the finest stage has no lateral convolution.

    Args:
        in_channels: channels of the backbone's stages, fine to coarse; the first is the width of the pyramid.
        dim: channels of the output.
        bins: of the pyramid pooling.
        norm: a Detectron2 norm name.
        dropout: of the pyramid pooling.
    """

    def __init__(self, *, in_channels: Sequence[int], dim: int, bins: Sequence[int], norm: str, dropout: float) -> None:
        super().__init__()
        width = in_channels[0]
        self.pooling = PyramidPooling(channels=in_channels[-1], bins=bins, norm=norm, dropout=dropout)
        self.laterals = nn.ModuleList(Conv2d(c, width, 1) for c in in_channels[1:])
        self.smooth = nn.ModuleList(Conv2d(width, width, 3, padding=1, bias=True) for _ in in_channels[1:])
        total = width * len(in_channels)
        self.fuse = Conv2d(total, dim, 3, padding=1, bias=False, norm=_norm(norm, dim), activation=F.relu)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Raw stages (B, C_i, H_i, W_i), fine to coarse -> (B, dim, H_0, W_0)."""
        coarse = [*features[1:-1], self.pooling(features[-1])]
        lateral = [features[0], *(conv(x) for conv, x in zip(self.laterals, coarse, strict=True))]
        pyramid = [
            conv(_resize(above, here) + here)
            for conv, here, above in zip(self.smooth, lateral[:-1], lateral[1:], strict=True)
        ]
        finest = pyramid[0]
        return self.fuse(torch.cat([_resize(x, finest) for x in (*pyramid, lateral[-1])], dim=1))


def segmentation_head(dim: int, num_classes: int) -> nn.Module:
    """One dataset's head: 3x3 convolution to one logit per class, at the decoder's stride."""
    return Conv2d(dim, num_classes, 3, padding=1)


def original_masks(probabilities: Tensor, inside: Sequence[int], size: Sequence[int]) -> dict[str, Tensor]:
    """One image's results from its padded probability map.

    Args:
        probabilities: (C, H, W), with padding.
        inside: (height, width) of the image without padding.
        size: (height, width) of the original image.

    Returns:
        "seg": (C, *inside) probabilities; "masks": (C, *size) bool, probability above 0.5.
    """
    seg = probabilities[:, : inside[0], : inside[1]]
    full = F.interpolate(seg[None], size=tuple(size), mode="bilinear", align_corners=False)
    return {"seg": seg, "masks": full[0] > 0.5}
