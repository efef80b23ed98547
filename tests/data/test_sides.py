"""Left and right in names of classes."""

from __future__ import annotations

import pytest

from fx_d2.data.sides import find_flip_pairs, has_side


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_lung", "right_lung"),
        ("LEFT_LUNG", "RIGHT_LUNG"),
        ("Left Lung", "right lung"),
        ("lung/left", "lung/right"),
        ("LUNG-LEFT", "lung_right"),
        ("leftLung", "RightLung"),
        ("lungLEFT", "lungRIGHT"),
        ("leftlung", "rightlung"),
        ("Left-sided pneumothorax", "Right-sided pneumothorax"),
        ("left_rib_10", "right rib 10"),
        ("LEFT", "RIGHT"),
        ("left to right", "right to left"),
    ],
)
def test_two_sides_are_a_pair(left: str, right: str) -> None:
    """Whatever the case and the separators, in either order, left first."""
    assert find_flip_pairs([[left, "heart", right]]) == find_flip_pairs([[right, left]]) == ((left, right),)


@pytest.mark.parametrize(
    "names",
    [
        ("left-sided pneumothorax", "pneumothorax"),
        ("left lung", "right lobe"),
        ("left rib 1", "right rib 2"),
        ("left rib 11", "right rib 1-1"),
        ("left <5mm", "right >5mm"),
        ("upright", "left"),
        ("cleft", "right"),
        ("Left Lung", "left_lung", "right lung"),
        ("left", "Right", "RIGHT"),
    ],
)
def test_nothing_else_is_a_pair(names: tuple[str, ...]) -> None:
    """Not with another thing or number, and not where two would do."""
    assert find_flip_pairs([names]) == ()


def test_pairs_are_of_one_task() -> None:
    """Each task has its own spelling; a name keeps the partner of the first."""
    assert find_flip_pairs([["left_lung", "right_lung"], ["LEFT LUNG", "RIGHT LUNG"], ["left_lung", "right_lung"]]) == (
        ("left_lung", "right_lung"),
        ("LEFT LUNG", "RIGHT LUNG"),
    )
    assert find_flip_pairs([["left lung"], ["right lung"]]) == ()
    assert find_flip_pairs([["left", "right"], ["left", "RIGHT"]]) == (("left", "right"),)


@pytest.mark.parametrize(
    "name", ["Left Lung", "right_clavicle", "LEFT", "leftLung", "lungRight", "LEFT_LUNG", "a/left"]
)
def test_words_that_are_sides(name: str) -> None:
    assert has_side(name)


@pytest.mark.parametrize("name", ["upright", "cleft", "Bright", "CLEFT", "Leftover", "heart"])
def test_words_that_are_not(name: str) -> None:
    assert not has_side(name)
