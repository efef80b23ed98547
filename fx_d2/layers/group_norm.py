"""Group norm that accepts a batch of one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm, also for a single image whose groups hold one value each; the output is then the bias.

    torch refuses that input, but accepts it in a larger batch, although images are normalised independently.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)
