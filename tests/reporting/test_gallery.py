from __future__ import annotations

import numpy as np
import pytest

from fx_d2.reporting.gallery import KINDS, choose_images

NAN = np.nan


def places(task: str, arrays: dict[str, np.ndarray], number: int = 9, **more: object) -> dict[str, list[int]]:
    chosen = choose_images(task, arrays, number, threshold=0.3, **more)
    assert list(chosen) == list(KINDS)
    return {kind: [choice.index for choice in choices] for kind, choices in chosen.items()}


LABELS = {
    "cls_classes": np.array(["a", "b"]),
    "cls_scores": np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.7], [0.5, 0.5]], np.float32),
    "cls_labels": np.array([[1, 0], [1, 0], [0, NAN], [NAN, NAN]], np.float32),
}


def test_labels() -> None:
    found = choose_images("cls", LABELS, 9, threshold=0.3)
    assert [choice.index for choice in found["worst"]] == [1, 2, 0]  # errors .8, .6, .1; the last one is unknown
    assert [choice.index for choice in found["false"]] == [1, 2, 0]  # absent with .8, .6, .1
    assert [choice.index for choice in found["missed"]] == [1, 0]  # present with .2, .9
    assert found["false"][0].reason == "b: probability 0.80, absent"
    assert found["missed"][0].reason == "a: probability 0.20, present"
    assert found["worst"][0].reason == "mean error 0.80, known labels: 2"
    assert [choice.index for choice in choose_images("cls", LABELS, 1, threshold=0.3)["worst"]] == [1]


def boxes() -> dict[str, np.ndarray]:
    rows = [(0, 0, 0.9, 1), (1, 0, 0.8, 0), (1, 0, 0.7, 1), (2, 0, 0.95, 0), (3, 0, 0.2, 1), (4, 0, 0.9, -1)]
    return {
        "loc_classes": np.array(["nodule"]),
        "loc_truth": np.array([[1], [3], [0], [1], [0], [-1]]),
        "loc_image": np.array([row[0] for row in rows]),
        "loc_class": np.array([row[1] for row in rows]),
        "loc_score": np.array([row[2] for row in rows], np.float32),
        "loc_hits": np.repeat(np.array([row[3] for row in rows], np.int8)[:, None], 13, axis=1),
    }


def test_boxes() -> None:
    found = choose_images("loc", boxes(), 9, threshold=0.3)
    # F1: 1, 2/5, 0, 0 (its only hit is below the threshold), 1 (an ignored box), not annotated.
    assert [choice.index for choice in found["worst"]] == [2, 3, 1]
    assert [choice.index for choice in found["false"]] == [2, 1]  # by score
    assert [choice.index for choice in found["missed"]] == [1, 3]  # two missed, one missed
    assert found["worst"][2].error == pytest.approx(1 - 2 / 5)
    assert found["false"][1].reason == "1 of 3 ground-truth boxes detected, 1 FP; nodule with score 0.80"
    assert found["missed"][0].reason == "1 of 3 ground-truth boxes detected, 1 FP, 2 missed"


def test_masks() -> None:
    arrays = {
        "seg_classes": np.array(["lung", "heart"]),
        "seg_dice": np.array([[0.9, 1.0], [0.0, 0.4], [0.0, NAN], [NAN, NAN], [0.0, 1.0]]),
        "seg_positive": np.array([[1, 0], [1, 1], [0, NAN], [NAN, NAN], [0, 0]]),
    }
    areas = np.array([[5.0, 0], [9, 9], [10, 0], [0, 0], [70, 0]])
    assert places("seg", arrays, areas=areas) == {"worst": [2, 1, 4, 0], "false": [4, 2], "missed": [1, 0]}
    assert places("seg", arrays)["false"] == [2, 4]
    found = choose_images("seg", arrays, 9, threshold=0.3, areas=areas)
    assert found["false"][0].reason == "lung: ground truth empty, 70 pixels predicted"
    assert found["missed"][0].reason == "lung: Dice 0.00"
