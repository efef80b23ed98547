from __future__ import annotations

import pytest

from fx_d2.evaluation.subgroups import ImageInfo, age_band, groups, means_only


@pytest.mark.parametrize(
    ("age", "band"),
    [("0", "0-19"), ("19", "0-19"), ("20", "20-39"), ("79", "60-79"), ("80", "80+"), ("063Y", "60-79")]
    + [("63.5", "60-79"), ("120", "80+"), ("", ""), ("Y", ""), ("006M", ""), ("-3", ""), ("412", "")],
)
def test_bands_of_age(age: str, band: str) -> None:
    assert age_band(age) == band


def test_groups_leave_unknown_images_out_and_make_none_of_all() -> None:
    images = {
        1: ImageInfo("a.png", "p", "F", "60", "PA"),
        2: ImageInfo("b.png", "p", "f", "", "PA"),
        5: ImageInfo("c.png", "q", "M", "61", "PA"),
        7: ImageInfo("d.png", "q", "", "30", "pa"),
    }
    found = groups(images)
    assert found == {"sex=F": [1, 2], "sex=M": [5], "age=20-39": [7], "age=60-79": [1, 5]}
    assert list(found) == ["sex=F", "sex=M", "age=20-39", "age=60-79"]
    assert groups({}) == {}


def test_means_of_small_groups_are_not_split_by_class() -> None:
    assert means_only({"auroc": 0.5, "auroc/No Lung Opacity / Not Normal": 0.4}) == {"auroc": 0.5}
