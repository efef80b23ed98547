"""Binary cross-entropy that ignores unknown labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fx_d2.layers.precision import at_least_float32
from fx_d2.layers.processes import shared_count


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over the known labels.

    With several processes, the mean is over the labels of all ranks: the ranks' losses average to it.

    Args:
        logits: (B, C).
        labels: (B, C) in [0, 1]; NaN = unknown.

    Returns:
        Scalar; zero, still attached to the autograd graph, when no label is known.
    """
    known = ~labels.isnan()
    logits = at_least_float32(logits)
    truth = labels.nan_to_num().to(logits.dtype)
    terms = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (terms * known).sum() / shared_count(known.sum())
