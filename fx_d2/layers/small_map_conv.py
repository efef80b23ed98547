"""A convolution of many channels over a map of few pixels, quicker on CPUs."""

from __future__ import annotations

import torch
from detectron2.layers import Conv2d
from torch import Tensor
from torch.nn import functional as F

FEW = 196
"""Pixels of all maps of a batch up to which the product is quicker: 14 x 14, or four maps of 7 x 7 (measured with 2048
channels in and 1024 out, 3 x 3, float32 on AVX2: docs/performance.md)."""


class SmallMapConv2d(Conv2d):
    """Detectron2's, as one matrix product where a CPU has few pixels to go over in float32.

    oneDNN rearranges the weights before it convolves, each time. Over few pixels that takes longer than the convolution
    itself. The result differs in rounding only. Padding is with zeros, and there are no groups.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H', W')."""
        if not self._quicker_as_product(x):
            return super().forward(x)
        columns = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
        y = self.weight.flatten(1) @ columns
        if self.bias is not None:
            y = y + self.bias[:, None]
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        y = y.unflatten(2, [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides])
        y = y if self.norm is None else self.norm(y)
        return y if self.activation is None else self.activation(y)

    def _quicker_as_product(self, x: Tensor) -> bool:
        # Exported and traced programs run elsewhere, on images of other numbers.
        portable = torch.compiler.is_exporting() or torch.jit.is_tracing()
        plain = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        return x.device.type == "cpu" and plain and not portable and 0 < len(x) * x.shape[2] * x.shape[3] <= FEW
