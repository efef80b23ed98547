from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fx_d2.evaluation import LocalizationEvaluator, MetricOptions
from fx_d2.evaluation.localization import IOU_THRESHOLDS
from fx_d2.structures import DatasetSpec, FXError

SPEC = DatasetSpec(name="toy", title="Toy", loc_classes=("nodule", "mass"))
SIZE = 200


def sample(image_id: int, boxes: list[tuple[int, list[float]]] | None) -> dict[str, Any]:
    """boxes: (class, xyxy); None = not annotated."""
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.png",
        "height": SIZE,
        "width": SIZE,
        "annotated": {"cls": False, "loc": boxes is not None, "seg": False},
        "annotations": [
            {"bbox": [x0, y0, x1 - x0, y1 - y0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": c}
            for c, (x0, y0, x1, y1) in boxes or []
        ],
    }


def output(rows: list[tuple[int, float, list[float]]]) -> dict[str, Any]:
    """rows: (class, score, xyxy)."""
    found = Instances((SIZE, SIZE))
    found.pred_boxes = Boxes(torch.tensor([r[2] for r in rows], dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor([r[1] for r in rows], dtype=torch.float32)
    found.pred_classes = torch.tensor([r[0] for r in rows], dtype=torch.int64)
    return {"instances": found}


def run(samples: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, float]:
    evaluator = LocalizationEvaluator(SPEC)
    evaluator.reset()
    for pair in zip(samples, outputs, strict=True):
        evaluator.process([pair[0]], [pair[1]])
    return evaluator.evaluate()["loc"]


BOX_A, BOX_B = [10.0, 10.0, 50.0, 50.0], [80.0, 90.0, 150.0, 160.0]


def test_perfect_boxes_score_one() -> None:
    samples = [sample(1, [(0, BOX_A)]), sample(2, [(1, BOX_B), (0, BOX_A)]), sample(3, [])]
    outputs = [output([(0, 0.9, BOX_A)]), output([(1, 0.8, BOX_B), (0, 0.7, BOX_A)]), output([])]
    result = run(samples, outputs)
    for name in ("AP40", "AP50", "AP75", "AP", "AR100", "AP40/nodule", "AP40/mass"):
        assert result[name] == pytest.approx(1.0), name
    assert result["images"] == 3


def test_no_prediction_at_all_scores_zero() -> None:
    result = run([sample(1, [(0, BOX_A)]), sample(2, [(1, BOX_B)])], [output([]), output([])])
    assert result["AP40"] == result["AP"] == result["AR100"] == 0.0


def test_a_class_without_truth_is_undefined_and_not_in_the_mean(caplog: pytest.LogCaptureFixture) -> None:
    result = run([sample(1, [(0, BOX_A)])], [output([(0, 0.9, BOX_A), (1, 0.8, BOX_B)])])
    assert result["AP40"] == pytest.approx(1.0) and np.isnan(result["AP40/mass"])
    assert any("undefined for mass" in message for message in caplog.messages)


def test_nothing_annotated_is_undefined() -> None:
    for samples, outputs in (([], []), ([sample(1, None)], [output([(0, 0.9, BOX_A)])])):
        result = run(samples, outputs)
        assert np.isnan(result["AP40"]) and np.isnan(result["AP"]) and result["images"] == 0


def test_only_healthy_images_are_undefined_and_do_not_crash() -> None:
    result = run([sample(1, []), sample(2, [])], [output([(0, 0.9, BOX_A)]), output([])])
    assert np.isnan(result["AP40"]) and result["images"] == 2


def test_false_alarms_on_healthy_images_lower_the_score() -> None:
    sick, found = sample(1, [(0, BOX_A)]), output([(0, 0.5, BOX_A)])
    quiet = run([sick, sample(2, []), sample(3, [])], [found, output([]), output([])])
    alarm = output([(0, 0.9, BOX_B)])
    loud = run([sick, sample(2, []), sample(3, [])], [found, alarm, alarm])
    assert quiet["AP40"] == pytest.approx(1.0)
    assert loud["AP40"] == pytest.approx(1 / 3, abs=1e-6)
    unannotated = run([sick, sample(2, None), sample(3, None)], [found, alarm, alarm])
    assert unannotated["AP40"] == pytest.approx(1.0) and unannotated["images"] == 1


def test_a_box_of_iou_forty_five_counts_at_forty_only() -> None:
    found = [10.0, 10.0, 10.0 + 40 * 0.45, 50.0]  # inside the truth, 45 % of it
    result = run([sample(1, [(0, BOX_A)])], [output([(0, 0.9, found)])])
    assert result["AP40"] == pytest.approx(1.0) and result["AP50"] == 0.0 and result["AP"] == 0.0


def test_agrees_with_a_direct_pycocotools_run(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    samples, outputs, truth, found = [], [], [], []
    for image_id in range(1, 31):
        boxes = [(int(rng.integers(2)), random_box(rng)) for _ in range(int(rng.integers(0, 4)))]
        rows = [(c, float(rng.random()), (np.array(b) + rng.normal(0, 6, 4)).tolist()) for c, b in boxes]
        rows += [(int(rng.integers(2)), float(rng.random()), random_box(rng)) for _ in range(3)]
        samples.append(sample(image_id, boxes))
        outputs.append(output(rows))
        for annotation in samples[-1]["annotations"]:
            x, y, w, h = annotation["bbox"]
            truth.append({"id": len(truth) + 1, "image_id": image_id, "category_id": annotation["category_id"] + 1})
            truth[-1] |= {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        for c, score, box in rows:
            x0, y0, x1, y1 = np.float32(box).tolist()
            found.append({"image_id": image_id, "category_id": c + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]})
            found[-1]["score"] = float(np.float32(score))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(1, 31)],
        "annotations": truth,
        "categories": [{"id": 1}, {"id": 2}],
        "info": {},
    }
    coco.createIndex()
    direct = COCOeval(coco, coco.loadRes(found), "bbox")
    direct.evaluate()
    direct.accumulate()
    direct.summarize()
    capsys.readouterr()
    result = run(samples, outputs)
    assert capsys.readouterr().out == ""
    assert result["AP"] == pytest.approx(direct.stats[0], abs=1e-9)
    assert result["AP50"] == pytest.approx(direct.stats[1], abs=1e-9)
    assert result["AP75"] == pytest.approx(direct.stats[2], abs=1e-9)
    assert result["AR100"] == pytest.approx(direct.stats[8], abs=1e-9)
    assert result["AP50"] <= result["AP40"] < 1
    assert list(tmp_path.iterdir()) == []


def random_box(rng: np.random.Generator) -> list[float]:
    x, y = rng.uniform(0, SIZE - 60, 2)
    w, h = rng.uniform(15, 60, 2)
    return [float(v) for v in (x, y, x + w, y + h)]


def test_an_image_counts_once() -> None:
    good, bad = output([(0, 0.9, BOX_A)]), output([(0, 0.95, BOX_B)])
    result = run([sample(1, [(0, BOX_A)]), sample(1, [(0, BOX_A)])], [good, bad])
    assert result["AP40"] == pytest.approx(1.0) and result["images"] == 1


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FXError, match=r"toy: 1\.png.*not finite"):
        run([sample(1, [])], [output([(0, float("nan"), BOX_A)])])
    with pytest.raises(FXError, match=r"toy: 1\.png.*not finite"):
        run([sample(1, [])], [output([(0, 0.5, [0.0, float("inf"), 1.0, 1.0])])])


def test_recall_counts_the_best_boxes_of_a_class_only() -> None:
    samples = [sample(1, [(0, BOX_A), (0, BOX_B)])]
    result = run(samples, [output([(0, 0.9, [0.0, 0.0, 5.0, 5.0]), (0, 0.8, BOX_A), (1, 0.7, BOX_A), (0, 0.6, BOX_B)])])
    assert result["AR1"] == 0.0 and result["AR10"] == result["AR100"] == 1.0
    alarms = [(0, 0.9, [0.0, 0.0, 5.0, 5.0])] * 10
    assert run(samples, [output([*alarms, (0, 0.8, BOX_A)])])["AR100"] == 0.5
    late = run(samples, [output([*alarms * 10, (0, 0.8, BOX_A)])])
    assert late["AR100"] == late["AP40"] == 0.0


def test_froc_counts_false_positives_over_all_annotated_images() -> None:
    alarm = [0.0, 0.0, 5.0, 5.0]
    samples = [sample(1, [(0, BOX_A)]), sample(2, [(0, BOX_B)]), sample(3, []), sample(4, []), sample(5, None)]
    outputs = [
        output([(0, 0.9, BOX_A), (0, 0.5, BOX_A)]),  # the second box on the same truth box is a false positive
        output([(0, 0.3, BOX_B)]),
        output([(0, 0.8, alarm), (1, 0.99, alarm)]),
        output([(0, 0.8, alarm)]),
        output([(0, 1.0, alarm)]),
    ]
    result = run(samples, outputs)
    # Of class 0: hit 0.9, alarms 0.8 0.8 0.5, hit 0.3, on four images: 0, 1/2, 3/4 false positives an image.
    expected = {"0.125": 0.5, "0.25": 0.5, "0.5": 0.5, "1": 1.0, "2": 1.0, "4": 1.0, "8": 1.0}
    assert {rate: result[f"froc@{rate}"] for rate in expected} == expected
    assert result["froc"] == result["froc/nodule"] == pytest.approx(np.mean(list(expected.values())))
    assert np.isnan(result["froc/mass"]) and result["loc_defined"] == 1 and result["images"] == 4


def test_froc_has_its_own_overlap() -> None:
    found = [10.0, 10.0, 10.0 + 40 * 0.3, 50.0]  # IoU 0.3
    for iou, value in ((0.2, 1.0), (0.5, 0.0)):
        evaluator = LocalizationEvaluator(SPEC, MetricOptions(froc_iou=iou))
        evaluator.process([sample(1, [(0, BOX_A)])], [output([(0, 0.9, found)])])
        assert evaluator.evaluate()["loc"]["froc"] == value
        assert evaluator.details(evaluator.rows)["froc"]["nodule"]["sensitivity"] == [0.0, value]


def test_intervals_curves_and_arrays() -> None:
    rng = np.random.default_rng(1)
    evaluator = LocalizationEvaluator(SPEC, MetricOptions(bootstrap=100))
    samples = [sample(i, [(0, random_box(rng))] * (i % 2)) for i in range(30)]
    for one in samples:
        truth = [[r["bbox"][0], r["bbox"][1], r["bbox"][0] + r["bbox"][2], r["bbox"][1] + r["bbox"][3]]
                 for r in one["annotations"] if rng.random() < 0.6]  # fmt: skip
        evaluator.process([one], [output([(0, float(rng.random()), box) for box in [*truth, random_box(rng)]])])
    result = evaluator.evaluate()["loc"]
    found = evaluator.intervals(evaluator.rows, [str(i // 3) for i in evaluator.rows])
    assert found["AP40"][0] < result["AP40"] < found["AP40"][1] and np.isnan(found["AP40/mass"]).all()
    curve = evaluator.details(evaluator.rows)["froc"]
    assert set(curve) == {"nodule"} and curve["nodule"]["sensitivity"][0] == 0.0
    for rate in ("0.125", "0.5", "8"):
        passed = np.array(curve["nodule"]["false_positives"]) <= float(rate)
        assert np.array(curve["nodule"]["sensitivity"])[passed][-1] == result[f"froc@{rate}"]
    assert evaluator.arrays({}, [1, 2])["loc_hits"].shape == (0, len(IOU_THRESHOLDS) + 1)
    arrays = evaluator.arrays(evaluator.rows, list(range(31)))
    assert arrays["loc_truth"][:, 0].tolist() == [i % 2 for i in range(30)] + [-1]
    assert len(arrays["loc_image"]) == len(arrays["loc_hits"]) and arrays["loc_image"].max() == 29
    assert (np.diff(arrays["loc_score"]) <= 0).all()


def test_a_class_with_one_truth_box_has_draws() -> None:
    evaluator = LocalizationEvaluator(SPEC)
    evaluator.process([sample(1, [(0, BOX_A)])], [output([(0, 0.9, BOX_A)])])
    evaluator.evaluate()
    assert evaluator.drawn(evaluator.rows)(np.array([[1], [0]]))["AP40"] == pytest.approx([1.0, np.nan], nan_ok=True)
