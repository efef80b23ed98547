"""Group norm of one image, too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's, of which a single image may have groups of one number, as images of a larger batch may.

    The result is the bias then. torch's module refuses the single image, though no image depends on those beside it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)
