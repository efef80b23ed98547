from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fx_d2.evaluation.heads import HeadComparison, shared_findings
from fx_d2.structures import DatasetSpec

OWN = DatasetSpec(name="own", title="Own", cls_classes=("Pleural_Thickening", "Mass"))
OTHER = DatasetSpec(name="other", title="Other", cls_classes=("mass", "Edema", "Pleural Thickening"))
STRANGER = DatasetSpec(name="stranger", title="Stranger", cls_classes=("Tuberculosis",))


class Heads(nn.Module):
    """Each dataset's head answers with its own table; remembers who was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.asked.append(batch[0]["dataset"])
        assert all(sample["tasks"] == ["cls"] for sample in batch)
        return [{"cls": torch.tensor([0.125 * sample["image_id"], 0.0, 0.9])} for sample in batch]


def test_findings_are_shared_by_name_whatever_its_spelling() -> None:
    assert shared_findings(OWN, OTHER) == [(0, 2), (1, 0)] and shared_findings(OWN, STRANGER) == []


def test_heads_are_compared_on_shared_findings() -> None:
    comparison, model = HeadComparison(OWN, (OWN, OTHER, STRANGER), {"other": {"mass": 0.375}}), Heads()
    batch = [{"image_id": i, "dataset": "own", "tasks": ["cls", "loc"]} for i in range(4)]
    comparison.process(model, batch[:2])
    comparison.process(model, batch[2:])
    assert model.asked == ["other", "other"] and batch[0]["dataset"] == "own"
    own = {
        i: (np.array([0.2, 0.5 if i > 1 else 0.4], np.float32), np.array([1.0, i % 2], np.float32)) for i in range(4)
    }
    found = comparison.result(own)
    assert set(found) == {"Pleural_Thickening", "Mass"} and found["Mass"]["images"] == 4
    mass = found["Mass"]["heads"]["other"]
    assert (mass["own_cut"], mass["other_cut"]) == (0.5, 0.375)  # a head says yes from its cut on
    assert (mass["both"], mass["own_only"], mass["other_only"], mass["neither"]) == (1, 1, 0, 2)
    assert mass["auroc"] == 0.75 and np.isnan(found["Pleural_Thickening"]["own_auroc"])
