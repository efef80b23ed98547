"""Splits by patient, and by lists of one's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fx_d2.data.splits import draw_splits, fill_splits, find_listed, image_key, read_split_lists
from fx_d2.structures import FXError

SHARES = {"val": 0.1, "test": 0.2}


def test_patients_stay_together_and_shares_are_met() -> None:
    patients = [f"p{i // 3}" for i in range(300)]
    splits = draw_splits(patients, SHARES, 0)
    assert len(set(zip(patients, splits, strict=True))) == 100
    counts = Counter(splits)
    assert (
        60 <= counts["test"] <= 62
        and 30 <= counts["val"] <= 32
        and counts["train"] == 300 - counts["test"] - counts["val"]
    )


def test_the_draw_depends_on_patients_and_seed_alone() -> None:
    patients = [f"p{i}" for i in range(50)]
    first = dict(zip(patients, draw_splits(patients, SHARES, 0), strict=True))
    assert dict(zip(patients[::-1], draw_splits(patients[::-1], SHARES, 0), strict=True)) == first
    assert dict(zip(patients, draw_splits(patients, SHARES, 1), strict=True)) != first
    assert set(draw_splits(patients, {"val": 0, "test": 0}, 0)) == {"train"}
    # Another release of this code must not draw anew: weights would meet their test patients in training.
    ten = draw_splits([f"p{i}" for i in range(10)], SHARES, 0)
    assert [i for i, x in enumerate(ten) if x == "test"] == [0, 6] and ten.index("val") == 3


@pytest.mark.parametrize(
    "shares",
    [
        {"val": -0.1},
        {"val": -0.1, "test": 0.2},
        {"val": 0.5, "test": 0.5},
        {"val": float("nan")},
        {"test": float("inf")},
    ],
)
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(FXError, match="shares"):
        draw_splits(["a", "b"], shares, 0)


def test_given_splits_stay_and_missing_ones_are_drawn() -> None:
    patients = [f"p{i // 2}" for i in range(40)]
    none: dict[str, float | None] = {"val": None, "test": None}
    assert fill_splits(patients, [""] * 40, none, 3) == draw_splits(patients, SHARES, 3)
    given = ["train"] * 30 + ["test"] * 10
    assert fill_splits(patients, given, none, 3) == given
    filled = fill_splits(patients, given, none | {"val": 0.2}, 3)
    assert filled[30:] == given[30:] and Counter(filled) == {"train": 24, "val": 6, "test": 10}
    with pytest.raises(FXError, match="--test-share: there is already a test split"):
        fill_splits(patients, given, none | {"test": 0.2}, 3)


def test_something_is_left_to_train() -> None:
    with pytest.raises(FXError, match="val and test take all 2 patients"):
        draw_splits(["a"] * 50 + ["b"] * 50, SHARES, 0)


def test_lists_with_labels_and_endings_are_read(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a.png 0 1\nsub/b.dcm\n")
    (tmp_path / "test.txt").write_text("1.2.826.3,1\n")
    assert read_split_lists(tmp_path) == {"a": "train", "sub/b": "train", "1.2.826.3": "test"}
    (tmp_path / "val.txt").write_text("a.jpeg\n")
    with pytest.raises(FXError, match=r"val\.txt: image 'a' is also in train\.txt"):
        read_split_lists(tmp_path)
    (tmp_path / "val.txt").write_text("c.png\n,\n")
    with pytest.raises(FXError, match=r"val\.txt: line ',' names no image"):
        read_split_lists(tmp_path)


def test_lists_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(FXError, match=r"has none of \['train\.txt'"):
        read_split_lists(tmp_path)


def test_names_are_found_by_path_or_by_their_end() -> None:
    images = ["p1/s1/view1.jpg", "p1/s2/view1.jpg", "p2/other.jpg"]
    assert find_listed(["other", "p1/s2/view1"], images, "list") == [2, 1]
    with pytest.raises(FXError, match="list: image 'view1': matches 2 images"):
        find_listed(["view1"], images, "list")
    with pytest.raises(FXError, match="list: image 'lost': is not in the release"):
        find_listed(["lost"], images, "list")


def test_only_endings_of_images_are_taken_off() -> None:
    assert [image_key(n) for n in ("a.PNG", "1.2.3", "1.2.dcm", "c/d.IMG")] == ["a", "1.2.3", "1.2", "c/d"]
