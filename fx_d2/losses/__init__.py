"""Losses: tensors in, scalars out; stateless, and independent of datasets."""

from fx_d2.losses.classification import classification_loss
from fx_d2.losses.consistency import consistency_loss
from fx_d2.losses.segmentation import dice_loss
from fx_d2.losses.set_prediction import Match, SetLossWeights, Targets, match_queries, set_losses

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
