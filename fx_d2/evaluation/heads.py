"""Classification heads of other datasets applied to a dataset's images, on the findings that both have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from fx_d2.evaluation.common import gather_by_image
from fx_d2.evaluation.ranking import auroc
from fx_d2.structures import DatasetSpec

CUT = 0.5
"""Probability from which a prediction counts as positive if the dataset has no operating point."""


def shared_findings(spec: DatasetSpec, other: DatasetSpec) -> list[tuple[int, int]]:
    """Pairs (class index in spec, class index in other) of equal names, ignoring case and punctuation."""
    names = {_key(name): i for i, name in enumerate(other.cls_classes)}
    return [(i, names[_key(name)]) for i, name in enumerate(spec.cls_classes) if _key(name) in names]


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class HeadComparison:
    """Runs each batch through every other head that shares a finding; one forward pass of the model per head.

    Args:
        spec: dataset row (`DatasetSpec`) of the images.
        others: dataset rows whose heads are compared; those without a shared finding are left out.
        thresholds: dataset -> class -> operating point.
    """

    def __init__(
        self, spec: DatasetSpec, others: Iterable[DatasetSpec], thresholds: Mapping[str, Mapping[str, float]]
    ) -> None:
        self._spec, self._thresholds = spec, thresholds
        self._others = {o.name: o for o in others if o.name != spec.name and shared_findings(spec, o)}
        self._rows: dict[int, dict[str, np.ndarray]] = {}

    def process(self, model: nn.Module, batch: list[dict[str, Any]]) -> None:
        """Store the probabilities of each other head on a batch, for all of its classes."""
        for name in self._others:
            outputs = model([sample | {"dataset": name, "tasks": ["cls"]} for sample in batch])
            for sample, output in zip(batch, outputs, strict=True):
                row = self._rows.setdefault(int(sample["image_id"]), {})
                row.setdefault(name, output["cls"].detach().float().cpu().numpy())

    def result(self, own: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any] | None:
        """The comparison over all ranks, on the main process; None on the others. Collective.

        Args:
            own: image id -> scores of the images' own head, and labels, of all images that `process` saw; needed on the
                main process.

        Returns:
            {finding: {"images", "own_auroc", "heads": {dataset: {"auroc" (against the images' own labels), "own_cut",
            "other_cut", "both", "own_only", "other_only", "neither" (image counts)}}}}; NaN = undefined.
        """
        rows = gather_by_image(self._rows)
        if rows is None:
            return None
        found: dict[str, Any] = {}
        for name, other in self._others.items():
            for i, j in shared_findings(self._spec, other):
                mine = np.array([own[image][0][i] for image in own], np.float32)
                theirs = np.array([rows[image][name][j] for image in own], np.float32)
                labels = np.array([own[image][1][i] for image in own], np.float32)
                finding = self._spec.cls_classes[i]
                entry = found.setdefault(finding, {"images": len(own), "own_auroc": auroc(mine, labels), "heads": {}})
                cuts = self._cut(self._spec.name, finding), self._cut(name, other.cls_classes[j])
                entry["heads"][name] = {"auroc": auroc(theirs, labels)} | _agreement(mine, theirs, cuts)
        return found

    def _cut(self, dataset: str, name: str) -> float:
        return self._thresholds.get(dataset, {}).get(name, CUT)


def _agreement(mine: np.ndarray, theirs: np.ndarray, cuts: Sequence[float]) -> dict[str, float]:
    a, b = mine.astype(np.float64) >= cuts[0], theirs.astype(np.float64) >= cuts[1]
    return {
        "own_cut": cuts[0],
        "other_cut": cuts[1],
        "both": float((a & b).sum()),
        "own_only": float((a & ~b).sum()),
        "other_only": float((~a & b).sum()),
        "neither": float((~a & ~b).sum()),
    }
