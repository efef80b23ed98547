from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from fx_d2.evaluation.common import gather_by_image, nan_mean, plain, weights_hash

NAN = float("nan")


def test_gathered_images_are_sorted() -> None:
    assert list(gather_by_image({3: "c", 1: "a", 2: "b"}) or {}) == [1, 2, 3]


def test_an_image_of_two_processes_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda rows, dst: [rows, {1: "again", 2: "b"}])
    assert gather_by_image({1: "a"}) == {1: "a", 2: "b"}
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    assert gather_by_image({1: "a"}) is None


def test_mean_leaves_undefined_values_out_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nan_mean([1.0, math.nan, 3.0]) == 2.0
        assert math.isnan(nan_mean([math.nan])) and math.isnan(nan_mean([]))


def test_plain_data_has_no_nan_at_any_depth() -> None:
    assert plain({"a": (1.0, NAN), "b": {1: [NAN, "x", None]}}) == {"a": [1.0, None], "b": {"1": [None, "x", None]}}


def test_a_hash_of_weights_depends_on_values_names_and_types_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = weights_hash(model)
    assert first == weights_hash(copy.deepcopy(model).eval()) and first.startswith("sha256:")
    model[1].num_batches_tracked += 1
    assert weights_hash(model) != first
    model[1].num_batches_tracked -= 1
    assert weights_hash(model) == first != weights_hash(model.double())
