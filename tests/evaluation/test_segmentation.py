from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fvcore.transforms.transform import TransformList
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_utils

from fx_d2.data.augmentation import ResizeTransform
from fx_d2.data.mapper import _mask_targets
from fx_d2.evaluation import MetricOptions, SegmentationEvaluator, dice
from fx_d2.evaluation.segmentation import FIELDS, hausdorff95, overlap
from fx_d2.structures import DatasetSpec, FXError

SPEC = DatasetSpec(name="toy", title="Toy", seg_classes=("lung", "heart"))
H, W = 12, 17


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode()}


def sample(image_id: int, masks: list[np.ndarray | None] | None, ignore: np.ndarray | None = None) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.png",
        "height": H,
        "width": W,
        "annotated": {"cls": False, "loc": False, "seg": masks is not None},
        "masks": None if masks is None else [None if m is None else rle(m) for m in masks],
        "ignore_mask": None if ignore is None else rle(ignore),
    }


def output(*masks: np.ndarray) -> dict[str, Any]:
    """Masks, and maps of half the height and width in which a pixel is inside where its block's first pixel is."""
    full = np.stack(masks)
    return {"masks": torch.from_numpy(full), "seg": torch.from_numpy(full[:, ::2, ::2] * 0.8 + 0.1)}


def run(
    samples: list[dict[str, Any]], outputs: list[dict[str, Any]], options: MetricOptions | None = None
) -> dict[str, float]:
    evaluator = SegmentationEvaluator(SPEC, options)
    evaluator.reset()
    evaluator.process(samples, outputs)
    return evaluator.evaluate()["seg"]


EMPTY = np.zeros((H, W), bool)
LEFT = EMPTY.copy()
LEFT[:, :6] = True


def brute_force(prediction: np.ndarray, truth: np.ndarray) -> float:
    a = {tuple(p) for p in np.argwhere(prediction)}
    b = {tuple(p) for p in np.argwhere(truth)}
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def test_agrees_with_counting_pixels_by_hand() -> None:
    rng = np.random.default_rng(0)
    truths = rng.random((9, 2, H, W)) < 0.3
    predictions = rng.random((9, 2, H, W)) < 0.4
    truths[2, 0] = truths[5, 1] = False
    predictions[5, 1] = False
    samples = [sample(i, list(t)) for i, t in enumerate(truths)]
    result = run(samples, [output(*p) for p in predictions])
    expected = np.array([[brute_force(p[c], t[c]) for c in range(2)] for p, t in zip(predictions, truths, strict=True)])
    assert result["dice/lung"] == pytest.approx(expected[:, 0].mean(), abs=1e-12)
    assert result["dice/heart"] == pytest.approx(expected[:, 1].mean(), abs=1e-12)
    assert result["dice"] == pytest.approx(expected.mean(), abs=1e-12)
    positive = truths.any(axis=(2, 3))
    per_class = [expected[positive[:, c], c].mean() for c in range(2)]
    assert result["dice_positives"] == pytest.approx(np.mean(per_class), abs=1e-12)
    assert result["images"] == 9


def test_both_empty_is_one_and_a_false_alarm_is_zero() -> None:
    result = run([sample(1, [EMPTY, EMPTY])], [output(EMPTY, LEFT)])
    assert result["dice/lung"] == 1.0 and result["dice/heart"] == 0.0
    assert np.isnan(result["dice_positives"])


def test_unknown_masks_do_not_count() -> None:
    samples = [sample(1, [LEFT, None]), sample(2, [EMPTY, None])]
    result = run(samples, [output(LEFT, LEFT), output(LEFT, EMPTY)])
    assert result["dice/lung"] == 0.5 and np.isnan(result["dice/heart"])
    assert result["dice"] == 0.5 and result["dice_positives"] == 1.0


def test_ignored_pixels_do_not_count() -> None:
    ignore = EMPTY.copy()
    ignore[:, 3:] = True
    inside = LEFT & ~ignore
    result = run([sample(1, [LEFT, EMPTY], ignore)], [output(inside, ignore)])
    assert result["dice/lung"] == 1.0 and result["dice/heart"] == 1.0
    nothing = run([sample(1, [LEFT, EMPTY], ~EMPTY)], [output(LEFT, LEFT)])
    assert np.isnan(nothing["dice"]) and nothing["images"] == 0
    only_ignored = run([sample(1, [ignore & LEFT, EMPTY], ignore)], [output(EMPTY, EMPTY)])
    assert np.isnan(only_ignored["dice_positives"])


def test_images_without_masks_do_not_count_and_an_image_counts_once() -> None:
    samples = [sample(1, [LEFT, LEFT]), sample(1, [LEFT, LEFT]), sample(2, None)]
    result = run(samples, [output(LEFT, LEFT), output(EMPTY, EMPTY), output(EMPTY, EMPTY)])
    assert result["dice"] == 1.0 and result["images"] == 1


def test_nothing_annotated_is_undefined() -> None:
    assert np.isnan(run([], [])["dice"])


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(FXError, match=r"toy: 1\.png"):
        run([sample(1, [LEFT, LEFT])], [output(LEFT, LEFT) | {"masks": torch.zeros(2, H, W + 1, dtype=torch.bool)}])
    wrong = sample(1, [LEFT, LEFT]) | {"masks": [rle(np.zeros((3, 3), bool))] * 2}
    with pytest.raises(FXError, match="prepare the dataset again"):
        run([wrong], [output(LEFT, LEFT)])


def test_dice_is_symmetric() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, H, W)) < 0.5
    assert dice(a, b) == dice(b, a)


def test_intersection_over_union_and_its_relation_to_dice() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        a, b, valid = rng.random((3, H, W)) < rng.random((3, 1, 1))
        d, iou, positive = overlap(a, b, valid)
        both, either = (a & b & valid).sum(), ((a | b) & valid).sum()
        assert iou == (both / either if either else 1.0) and positive == (b & valid).any()
        assert d == pytest.approx(2 * iou / (1 + iou), abs=1e-12)
    result = run([sample(1, [LEFT, EMPTY])], [output(LEFT, EMPTY)])
    assert result["iou"] == 1.0 and result["iou/heart"] == 1.0 and np.isnan(result["iou_positives/heart"])


def test_at_the_networks_resolution_the_maps_are_compared_with_the_shrunken_truth() -> None:
    small = EMPTY[: H // 2, : W // 2].copy()
    small[:, :3] = True
    half = {"masks": torch.from_numpy(np.stack([LEFT, LEFT])), "seg": torch.from_numpy(np.stack([small, ~small]) * 1.0)}
    result = run([sample(1, [LEFT, LEFT])], [half])
    assert result["dice/lung"] == result["dice/heart"] == 1.0
    assert result["network_dice/lung"] == 1.0 and result["network_dice/heart"] == 0.0
    ignore = ~LEFT
    assert run([sample(1, [LEFT, LEFT], ignore)], [half])["network_dice/heart"] == 0.0
    one_pixel = EMPTY.copy()
    one_pixel[0, 1] = True
    # The pixel is lost where the picture shrinks: positive in the original, empty at the network's resolution.
    lost = run([sample(1, [one_pixel, EMPTY])], [output(EMPTY, EMPTY)])
    assert lost["dice/lung"] == 0.0 and lost["dice_positives/lung"] == 0.0
    assert lost["network_dice/lung"] == 1.0 and np.isnan(lost["network_dice_positives/lung"])


def test_the_truth_shrinks_exactly_as_in_training() -> None:
    """1024 to 224 pixels in small: the middle of every seventh new pixel lies between two old ones."""
    truth = np.random.default_rng(3).random((2, 32, 32)) < 0.5
    record = sample(1, list(truth)) | {"height": 32, "width": 32}
    trained = _mask_targets(record, TransformList([ResizeTransform(old=(32, 32), new=(7, 7))]), (7, 7), [0, 1])
    found = {"masks": torch.from_numpy(truth), "seg": trained["masks"].float()}
    assert run([record], [found])["network_dice"] == 1.0


def brute_force_hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    def outline(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~inner)

    distance = np.sqrt(((outline(a)[:, None] - outline(b)[None]) ** 2).sum(axis=2))
    return max(np.percentile(distance.min(axis=1), 95), np.percentile(distance.min(axis=0), 95))


def test_hausdorff_distance_agrees_with_all_pairs_of_outline_pixels() -> None:
    rng = np.random.default_rng(4)
    for _ in range(30):
        a, b = rng.random((2, H, W)) < 0.2
        assert hausdorff95(a, b) == pytest.approx(brute_force_hausdorff(a, b), abs=1e-12)
    assert hausdorff95(LEFT, LEFT) == 0.0 and np.isnan(hausdorff95(LEFT, EMPTY))
    shifted = np.roll(LEFT, 3, axis=1)
    asked = run([sample(1, [LEFT, LEFT])], [output(shifted, EMPTY)], MetricOptions(hausdorff=True))
    assert asked["hd95"] == asked["hd95/lung"] == 3.0 and np.isnan(asked["hd95/heart"])
    assert "hd95" not in run([sample(1, [LEFT, LEFT])], [output(LEFT, LEFT)])
    # Pixels left out count neither in the truth nor in what was found: within the first six columns all is alike.
    ignored = run([sample(1, [LEFT, LEFT], ~LEFT)], [output(~EMPTY, LEFT)], MetricOptions(hausdorff=True))
    assert ignored["hd95"] == 0.0


def test_intervals_and_arrays() -> None:
    rng = np.random.default_rng(5)
    truths, predictions = rng.random((2, 12, 2, H, W)) < 0.4
    evaluator = SegmentationEvaluator(SPEC, MetricOptions(bootstrap=100))
    samples = [sample(i, [t[0], None]) for i, t in enumerate(truths)]
    evaluator.process(samples, [output(*p) for p in predictions])
    result = evaluator.evaluate()["seg"]
    found = evaluator.intervals(evaluator.rows, [str(i) for i in evaluator.rows])
    assert found["dice"][0] < result["dice"] < found["dice"][1] and found["dice"] == found["dice/lung"]
    assert np.isnan(found["dice/heart"]).all()
    arrays = evaluator.arrays(evaluator.rows, [*range(12), 99])
    assert set(arrays) == {f"seg_{field}" for field in FIELDS}
    assert arrays["seg_dice"].shape == (13, 2) and np.nanmean(arrays["seg_dice"]) == pytest.approx(result["dice"])
    assert evaluator.details(evaluator.rows)["counts"]["heart"] == {"images": 0, "positive": 0}


def test_a_class_that_some_images_know() -> None:
    """It counts in draws as in the metric, and images that know the other class only are kept in the file."""
    evaluator = SegmentationEvaluator(SPEC)
    samples = [sample(1, [LEFT, None]), sample(2, [LEFT, LEFT]), sample(3, [None, LEFT])]
    evaluator.process(samples, [output(LEFT, LEFT), output(LEFT, EMPTY), output(EMPTY, LEFT)])
    result = evaluator.evaluate()["seg"]
    assert result["dice/lung"] == 1.0 and result["dice/heart"] == 0.5 and result["dice"] == 0.75
    drawn = evaluator.drawn(evaluator.rows)(np.ones((1, 3), np.int64))
    assert {key: drawn[key][0] for key in ("dice/lung", "dice/heart", "dice")} == {
        key: result[key] for key in ("dice/lung", "dice/heart", "dice")
    }
    counts = evaluator.details(evaluator.rows)["counts"]
    assert counts == {"lung": {"images": 2, "positive": 2}, "heart": {"images": 2, "positive": 2}}
    images = [1, 2, 3, 4]
    arrays = evaluator.arrays(evaluator.rows, images) | {"image_id": np.array(images)}
    assert list(evaluator.restored(arrays)) == [1, 2, 3]


MASKS = hnp.arrays(bool, (5, 7), elements=st.booleans(), fill=st.booleans())


@settings(deadline=2000, max_examples=60, derandomize=True)
@given(MASKS, MASKS)
def test_any_two_masks_agree_with_counting_by_hand(a: np.ndarray, b: np.ndarray) -> None:
    d, iou, positive = overlap(a, b)
    assert d == pytest.approx(brute_force(a, b), abs=1e-12) == dice(b, a)
    assert 0 <= iou <= d <= 1 and positive == b.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_maps_that_are_not_finite_are_refused(value: float) -> None:
    broken = output(LEFT, LEFT)
    broken["seg"][1, 2, 3] = value
    with pytest.raises(FXError, match=r"toy: 1\.png.*not finite"):
        run([sample(1, [LEFT, LEFT])], [broken])
