from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_utils

from fx_d2.evaluation import prediction_record, read_predictions
from fx_d2.evaluation.predictions import write_predictions
from fx_d2.structures import FXError

SAMPLE = {"file_name": "/images/7.png", "image_id": 7, "height": 9, "width": 11}


def output() -> dict[str, Any]:
    found = Instances((9, 11))
    found.pred_boxes = Boxes(torch.tensor([[1.234567, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0]]))
    found.scores = torch.tensor([0.75, 0.25])
    found.pred_classes = torch.tensor([1, 0])
    masks = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(0)) > 0.5
    return {"cls": torch.tensor([0.5, 0.125], dtype=torch.bfloat16), "instances": found, "masks": masks}


def test_record_of_all_tasks_is_plain_data() -> None:
    record = prediction_record(SAMPLE, output(), 0.5)
    assert json.loads(json.dumps(record)) == record
    assert record["file_name"] == "/images/7.png" and record["image_id"] == 7
    assert record["cls"] == [0.5, 0.125]
    assert record["boxes"] == [[1.23, 2.0, 3.0, 4.0]] and record["scores"] == [0.75] and record["classes"] == [1]
    decoded = np.stack([mask_utils.decode(rle) for rle in record["masks"]])
    assert (decoded == output()["masks"].numpy()).all()


def test_record_holds_the_tasks_of_the_output_only() -> None:
    assert set(prediction_record(SAMPLE, {"cls": torch.tensor([0.5])}, 0.5)) == {"file_name", "image_id", "cls"}
    boxes = {"instances": output()["instances"]}
    assert prediction_record(SAMPLE, boxes, 0.9)["boxes"] == []
    assert prediction_record(SAMPLE, boxes, 0.75)["scores"] == [0.75]


def test_written_predictions_are_read_back_by_image_id(tmp_path: Path) -> None:
    record = prediction_record(SAMPLE, output(), 0.0)
    path = tmp_path / "new" / "predictions_teacher.json"
    write_predictions(path, "teacher", {"a_test": [record], "b_test": []}, 0.05)
    assert read_predictions(path, "a_test", 0.05) == ("teacher", {7: record})
    assert read_predictions(path, "b_test", 0.3) == ("teacher", {})


def test_file_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(FXError, match="No such file"):
        read_predictions(tmp_path / "absent.json", "full_test", 0.3)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(FXError, match="not JSON"):
        read_predictions(tmp_path / "bad.json", "full_test", 0.3)
    for other in ([1], {}, {"format": "coco", "score_thresh": 0.0, "splits": {"full_test": []}, "which": "student"}):
        (tmp_path / "other.json").write_text(json.dumps(other))
        with pytest.raises(FXError, match="not an fx_d2 predictions file"):
            read_predictions(tmp_path / "other.json", "full_test", 0.3)
    write_predictions(tmp_path / "good.json", "student", {"full_test": []}, 0.05)
    with pytest.raises(FXError, match="no split 'full_val', only"):
        read_predictions(tmp_path / "good.json", "full_val", 0.3)
    with pytest.raises(FXError, match="no boxes with scores below 0.05, but 0.01 was requested"):
        read_predictions(tmp_path / "good.json", "full_test", 0.01)
