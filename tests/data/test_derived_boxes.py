"""Boxes from masks, and one box from several readers'."""

from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.derived_boxes import annotate_from_masks, boxes_of_masks, clip_box, fuse_boxes
from fx_d2.data.masks import decode_masks
from fx_d2.structures import DatasetSpec, FXError


def masks() -> list[np.ndarray]:
    """Two masks that touch by a corner, one of two pieces."""
    first, second = np.zeros((2, 20, 30), np.uint8)
    first[2:5, 3:8] = 1
    first[10, 20] = 7
    second[5:9, 8:10] = 255
    return [first, second]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("annotations", [[3, 2, 18, 9], [8, 5, 2, 4]]),
        ("components", [[3, 2, 7, 7], [20, 10, 1, 1]]),
        ("extent", [[3, 2, 18, 9]]),
    ],
)
def test_boxes_follow_the_rule(rule: str, expected: list[list[float]]) -> None:
    assert boxes_of_masks(masks(), rule) == expected


def test_empty_masks_give_no_box() -> None:
    for rule in ("annotations", "components", "extent"):
        assert boxes_of_masks([np.zeros((4, 5))], rule) == boxes_of_masks([], rule) == []


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(FXError, match="'hull' for boxes from masks"):
        boxes_of_masks(masks(), "hull")


def test_masks_make_labels_boxes_and_merged_masks() -> None:
    names = ("a", "b")
    spec = DatasetSpec(name="d", title="D", cls_classes=names, loc_classes=names, seg_classes=names)
    row = annotate_from_masks(spec, {"b": masks()}, (20, 30), "annotations")
    assert row["labels"] == [0, 1]
    assert row["boxes"] == [("b", [3, 2, 18, 9]), ("b", [8, 5, 2, 4])]
    decoded = decode_masks(row["masks"], "test")
    assert not decoded[..., 0].any() and np.array_equal(decoded[..., 1], np.any(masks(), axis=0))
    only = annotate_from_masks(DatasetSpec(name="d", title="D", loc_classes=names), {}, (20, 30), "extent")
    assert only == {"labels": None, "boxes": [], "masks": None}


def test_readers_boxes_become_the_mean_of_those_that_overlap() -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 10.0, 20.0], [1.0, 2.0, 10.0, 8.0], [2.0, 1.0, 9.0, 9.0]]
    fused, members = fuse_boxes(boxes, 0.5)
    assert members == [[0, 2, 3], [1]]
    assert np.allclose(fused, [[1, 1, 29 / 3, 9], [50, 50, 10, 20]])


def test_the_threshold_and_the_best_overlap_decide() -> None:
    half = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]]  # IoU exactly 0.5
    assert len(fuse_boxes(half, 0.5)[0]) == 2 and len(fuse_boxes(half, 0.49)[0]) == 1
    rivals = [[0.0, 0.0, 10.0, 10.0], [6.0, 0.0, 10.0, 10.0], [5.0, 0.0, 10.0, 10.0]]
    assert fuse_boxes(rivals, 0.3)[1] == [[0], [1, 2]]
    assert fuse_boxes([], 0.5) == ([], [])


def test_a_fused_box_moves_with_its_members() -> None:
    # The third overlaps the first by less than the threshold, and the mean of the first two by more.
    chain = [[0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 10.0, 10.0], [4.5, 0.0, 10.0, 10.0]]
    assert fuse_boxes([chain[0], chain[2]], 0.5)[1] == [[0], [1]]
    assert fuse_boxes(chain, 0.5)[1] == [[0, 1, 2]]


def test_a_box_is_cut_to_its_image_by_a_pixel_at_most() -> None:
    assert clip_box((-0.5, 2, 30.9, 10), (20, 30)) == [0, 2, 30, 8]
    assert clip_box((3, 4, 9, 11), (20, 30)) == [3, 4, 6, 7] and clip_box((-1, -1, 31, 21), (20, 30)) == [0, 0, 30, 20]
    for wrong, message in (
        ((-1.5, 2, 9, 9), "extends beyond its image of 30 x 20"),
        ((1, 2, 9, 22), "extends beyond its image"),
        ((5, 5, 5, 9), "has no area"),
        ((30, 5, 30.5, 9), "has no area"),
        ((1, 2, float("nan"), 4), "four finite numbers"),
        ((1, 2, 3), "four finite numbers"),
        (None, "box None must be four finite numbers"),
        ((1, 2, "x", 4), "four finite numbers"),
        ((1, 2, [3], 4), "four finite numbers"),
    ):
        with pytest.raises(FXError, match=message):
            clip_box(wrong, (20, 30))  # type: ignore[arg-type]
