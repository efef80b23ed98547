from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_utils

from fx_d2.structures import DatasetSpec
from fx_d2.visualization import Findings, class_colors, predicted_findings, training_findings, truth_findings

SPEC = DatasetSpec(name="toy", title="Toy", loc_classes=("heart", "nodule"), seg_classes=("heart", "lung"))


def test_colours_are_fixed_distinct_and_shared_by_tasks() -> None:
    colors = class_colors(SPEC)
    assert list(colors) == ["heart", "nodule", "lung"] and colors == class_colors(SPEC)
    many = class_colors(DatasetSpec(name="t", title="T", seg_classes=tuple(f"c{i}" for i in range(20))))
    values = np.array(list(many.values()))
    distance = np.abs(values[:, None] - values[None]).sum(axis=2) + 9 * np.eye(20)
    assert distance.min() > 0.15
    assert ((values >= 0) & (values <= 1)).all()
    assert (values @ [0.2126, 0.7152, 0.0722] > 0.41).all()


def test_truth_of_a_sample() -> None:
    mask = np.zeros((6, 7), np.uint8, order="F")
    mask[2:4, 3] = 1
    sample = {
        "annotated": {"cls": True, "loc": True, "seg": True},
        "labels": [1, 0, None, -1, float("nan")],
        "annotations": [{"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}],
        "masks": [mask_utils.encode(mask), None],
    }
    found = truth_findings(sample)
    assert found.labels == (1.0, 0.0, None, None, None)
    assert found.boxes is not None and found.boxes.tolist() == [[1, 2, 4, 6]]
    assert found.classes is not None and found.classes.tolist() == [1]
    assert found.masks is not None and (found.masks[0] == mask.astype(bool)).all() and found.masks[1] is None
    nothing = truth_findings(sample | {"annotated": {"cls": False, "loc": False, "seg": False}})
    assert nothing == Findings()
    healthy = truth_findings(sample | {"annotations": []})
    assert healthy.boxes is not None and healthy.boxes.shape == (0, 4)


def test_prediction_of_a_record() -> None:
    record = {"cls": [0.2], "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "scores": [0.9, 0.2], "classes": [0, 1]}
    found = predicted_findings(record, 0.3)
    assert found.labels == (0.2,) and found.masks is None
    assert found.boxes is not None and found.boxes.tolist() == [[1, 2, 3, 4]]
    assert found.scores is not None and found.scores.tolist() == [0.9]
    assert predicted_findings({"cls": [0.2]}, 0.3).boxes is None


def test_what_a_training_sample_asks_for() -> None:
    """Soft labels keep their value, unknown ones and masks are None."""
    labels = torch.tensor([1.0, 0.625, float("nan")])
    assert training_findings({"task": "cls", "labels": labels}).labels == (1.0, 0.625, None)
    truth = Instances((6, 7), gt_boxes=Boxes(torch.tensor([[1.0, 2.0, 4.0, 5.0]])), gt_classes=torch.tensor([1]))
    found = training_findings({"task": "loc", "instances": truth})
    assert found.boxes is not None and found.boxes.tolist() == [[1, 2, 4, 5]] and found.classes.tolist() == [1]
    masks = torch.zeros(2, 6, 7)
    masks[0, 2] = 1
    found = training_findings({"task": "seg", "masks": masks, "mask_known": torch.tensor([True, False])})
    assert found.masks is not None and found.masks[0].sum() == 7 and found.masks[1] is None
