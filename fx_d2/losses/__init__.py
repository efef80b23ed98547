"""Losses: tensors in, scalars out; no module state, no knowledge of datasets."""

from .classification import classification_loss
from .consistency import consistency_loss
from .segmentation import dice_loss
from .set_prediction import Match, SetLossWeights, Targets, match_queries, set_losses

__all__ = [
    "Match",
    "SetLossWeights",
    "Targets",
    "classification_loss",
    "consistency_loss",
    "dice_loss",
    "match_queries",
    "set_losses",
]
