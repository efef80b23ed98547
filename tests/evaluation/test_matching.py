from __future__ import annotations

import contextlib
import io
import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fx_d2.evaluation.matching import (
    FALSE_POSITIVES,
    HIT,
    IGNORED,
    MISS,
    average_precisions,
    box_iou,
    froc,
    match_boxes,
    sensitivities,
)

THRESHOLDS = np.linspace(0.40, 0.95, 12)
COUNTS = (1, 10, 100)


class Image(NamedTuple):
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    truth: np.ndarray
    truth_classes: np.ndarray
    crowd: np.ndarray


def draw(seed: int, classes: int, most: int, levels: int, crowd: float, grid: int) -> list[Image]:
    """Boxes near truth boxes; few score levels and a coarse grid make equal scores and equal overlaps."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(int(rng.integers(1, 9))):
        truths, count = int(rng.integers(0, 7)), int(rng.integers(0, most + 1))
        truth = np.c_[rng.uniform(0, 100, (truths, 2)), rng.uniform(5, 60, (truths, 2))]
        near = truth[rng.integers(0, truths, count)] if truths else np.ones((count, 4))
        boxes = near + rng.normal(0, rng.choice([0, 3, 8]), (count, 4))
        if grid:
            truth, boxes = np.round(truth / grid) * grid, np.round(boxes / grid) * grid
        truth[:, 2:], boxes[:, 2:] = np.maximum(truth[:, 2:], 1), np.maximum(boxes[:, 2:], 1)
        scores = (rng.integers(0, levels, count) / levels).astype(np.float32)
        labels = rng.integers(0, classes, count), rng.integers(0, classes, truths)
        images.append(Image(boxes, scores, labels[0], truth, labels[1], rng.random(truths) < crowd))
    return images


def ours(images: list[Image], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """AP (12, K) and recall (12, K, 3)."""
    found = [
        match_boxes(i.boxes, i.scores, i.classes, i.truth, i.truth_classes, THRESHOLDS, 100, i.crowd) for i in images
    ]
    scores = np.concatenate([i.scores[m.kept] for i, m in zip(images, found, strict=True)])
    order = np.argsort(-scores, kind="stable")
    labels = np.concatenate([i.classes[m.kept] for i, m in zip(images, found, strict=True)])[order]
    rank, hits = (np.concatenate([getattr(m, key) for m in found])[order] for key in ("rank", "hits"))
    precision, recall = np.full((12, classes), np.nan), np.full((12, classes, 3), np.nan)
    for k in range(classes):
        positives = sum(int(((i.truth_classes == k) & ~i.crowd).sum()) for i in images)
        if positives:
            mine = hits[labels == k]
            once = np.zeros(len(mine), int), np.ones((1, 1), np.int64), np.array([positives])
            precision[:, k] = [average_precisions(mine[:, t], *once)[0] for t in range(12)]
            for j, count in enumerate(COUNTS):
                recall[:, k, j] = (hits[(labels == k) & (rank < count)] == HIT).sum(axis=0) / positives
    return precision, recall


def pycocotools(images: list[Image], classes: int) -> tuple[np.ndarray, np.ndarray]:
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for box, k, crowd in zip(image.truth.tolist(), image.truth_classes, image.crowd, strict=True):
            truth.append(row(len(truth) + 1, number, int(k), box) | {"iscrowd": int(crowd)})
        for box, k, score in zip(image.boxes.tolist(), image.classes, image.scores.tolist(), strict=True):
            found.append(row(len(found) + 1, number, int(k), box) | {"score": score, "iscrowd": 0})
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(table(truth, len(images), classes), table(found, len(images), classes), "bbox")
        run.params.iouThrs, run.params.maxDets = THRESHOLDS, list(COUNTS)
        run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], ["all"]
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"][:, :, :, 0, -1].mean(axis=1), run.eval["recall"][:, :, 0, :]
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


def test_overlap_by_hand() -> None:
    """Boxes smaller than a pixel overlap, too; those that meet along one axis, or nowhere, do not."""
    boxes = np.array([[0.0, 0.0, 1.0, 1.0]])
    truth = np.array(
        [[0.5, 0.0, 1.0, 1.0], [0.0, 0.5, 2.0, 2.0], [2.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], [9, 9, 1, 1]]
    )
    assert box_iou(boxes, truth, np.zeros(5, bool))[0] == pytest.approx([1 / 3, 1 / 9, 0, 0, 0])
    assert box_iou(boxes, truth, np.ones(5, bool))[0] == pytest.approx([1 / 2, 1 / 2, 0, 0, 0])


def row(number: int, image: int, category: int, box: list[float]) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category + 1, "bbox": box, "area": box[2] * box[3]}


def table(rows: list[dict[str, Any]], images: int, classes: int) -> COCO:
    coco = COCO()
    numbers = [{"id": i + 1} for i in range(images)]
    coco.dataset = {"images": numbers, "annotations": rows, "categories": [{"id": k + 1} for k in range(classes)]}
    coco.createIndex()
    return coco


@settings(deadline=5000, max_examples=60, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.sampled_from([0, 3, 30, 150]),
    st.sampled_from([1, 4, 1000]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0, 10]),
)
def test_agrees_with_pycocotools(seed: int, classes: int, most: int, levels: int, crowd: float, grid: int) -> None:
    images = draw(seed, classes, most, levels, crowd, grid)
    for mine, theirs in zip(ours(images, classes), pycocotools(images, classes), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-12, nan_ok=True)


def match(
    boxes: list[list[float]], scores: list[float], truth: list[list[float]], crowd: list[bool] | None = None
) -> list:
    flags = None if crowd is None else np.array(crowd)
    arrays = (np.array(boxes, float).reshape(-1, 4), np.array(scores, np.float32), np.zeros(len(boxes), int))
    reference = np.array(truth, float).reshape(-1, 4), np.zeros(len(truth), int)
    return match_boxes(*arrays, *reference, [0.5], 100, flags).hits[:, 0].tolist()


def test_rules_of_matching() -> None:
    box = [10.0, 10.0, 20.0, 20.0]
    assert match([box, box], [0.5, 0.9], [box]) == [HIT, MISS]  # duplicates: the better score takes it
    assert match([box, box], [0.5, 0.9], [box, box]) == [HIT, HIT]
    inside_out = [30.0, 10.0, -20.0, 20.0]
    assert match([inside_out], [0.5], [box]) == [IGNORED] == match([inside_out], [0.5], [])
    assert match([box], [0.5], []) == [MISS] and match([], [], [box]) == []
    assert match([box, box, box], [0.9, 0.8, 0.7], [box, box], [False, True]) == [HIT, IGNORED, IGNORED]


def test_weights_are_copies_of_images() -> None:
    rng = np.random.default_rng(0)
    truth, image = rng.integers(2, 5, 8), rng.integers(0, 8, 40)
    hits = rng.choice([HIT, MISS, MISS, IGNORED], 40).astype(np.int8)
    weights = rng.integers(0, 3, (20, 8))
    weights[0] = 0
    found = average_precisions(hits, image, weights, weights @ truth)
    assert np.isnan(found[0])
    for row_weights, value in zip(weights[1:], found[1:], strict=True):
        assert value == pytest.approx(by_hand(hits, row_weights[image], int(row_weights @ truth)), abs=1e-12)


def test_draws_cost_memory_for_hits_and_not_for_boxes() -> None:
    rng = np.random.default_rng(0)
    hits, image = np.zeros(20_000, np.int8), rng.integers(0, 200, 20_000)
    hits[::400] = HIT
    weights = rng.integers(0, 3, (500, 200))
    tracemalloc.start()
    average_precisions(hits, image, weights, weights.sum(axis=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500 * 20_000  # bytes: one for each draw and box


def by_hand(hits: np.ndarray, weights: np.ndarray, positives: int) -> float:
    """Average precision where a box of weight w is w boxes that pass a threshold together."""
    points, passed, found = [], 0, 0
    for hit, weight in zip(hits.tolist(), weights.tolist(), strict=True):
        if hit != IGNORED:
            passed, found = passed + weight, found + weight * (hit == HIT)
            points.append((found / positives, found / max(passed, 1)))
    levels = [[p for recall, p in points if recall >= level] for level in np.linspace(0, 1, 101)]
    return sum(max(level, default=0.0) for level in levels) / 101


def brute_force_froc(scores: np.ndarray, hits: np.ndarray, positives: int, images: int, rate: float) -> float:
    best = 0.0
    for cut in scores:
        passed = scores >= cut
        if (passed & (hits == MISS)).sum() / images <= rate:
            best = max(best, (passed & (hits == HIT)).sum() / positives)
    return best


@settings(deadline=2000, max_examples=60, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from([1, 3, 100]), st.integers(1, 9))
def test_froc_agrees_with_trying_every_threshold(seed: int, count: int, levels: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    scores = -np.sort(-(rng.integers(0, levels, count) / levels).astype(np.float32))
    hits = rng.choice([HIT, MISS, MISS, IGNORED], count).astype(np.int8)
    positives = max(1, int((hits == HIT).sum()) + int(rng.integers(0, 3)))
    alarms, sensitivity = froc(scores, hits, positives, images)
    assert (np.diff(alarms) >= 0).all() and (np.diff(sensitivity) >= 0).all()
    expected = [brute_force_froc(scores, hits, positives, images, rate) for rate in FALSE_POSITIVES]
    assert sensitivities(alarms, sensitivity) == pytest.approx(expected, abs=1e-12)
