"""Metric options, read once from the config."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

from fx_d2.structures import FXError


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """Keys of TEST that change what is computed.

    Attributes:
        bootstrap: number of bootstrap resamples behind each interval; 0 = no intervals.
        seed: seed of the resamples.
        specificity: specificity at which sensitivity is reported and operating points are chosen.
        froc_iou: minimum IoU of a hit in FROC.
        hausdorff: whether segmentation also reports the 95 % Hausdorff distance.
    """

    bootstrap: int = 0
    seed: int = 0
    specificity: float = 0.9
    froc_iou: float = 0.2
    hausdorff: bool = False

    def __post_init__(self) -> None:
        """Raise FXError naming the key for a value out of range."""
        if self.bootstrap < 0:
            raise FXError(f"TEST.BOOTSTRAP must be 0 or a number of resamples, not {self.bootstrap}")
        for key, value in (("SPECIFICITY", self.specificity), ("FROC_IOU", self.froc_iou)):
            if not 0 < value < 1:
                raise FXError(f"TEST.{key} must lie between 0 and 1, not {value}")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MetricOptions:
        """The options of TEST."""
        node = cfg.TEST
        return cls(
            bootstrap=node.BOOTSTRAP,
            seed=node.BOOTSTRAP_SEED,
            specificity=node.SPECIFICITY,
            froc_iou=node.FROC_IOU,
            hausdorff=node.HAUSDORFF,
        )
