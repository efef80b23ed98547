"""The table of counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fx_d2.data.annotations import load_split
from fx_d2.data.summary import count_table
from fx_d2.structures import DatasetSpec


def test_counts_per_class(make_dataset: Callable[..., Path], spec: DatasetSpec) -> None:
    dicts = load_split(make_dataset() / "toy" / "train.json", spec, "train")
    table = count_table(replace(spec, expected=(("train", 5),)), {"train": dicts})
    cells = {line.rsplit("  ", 1)[0].strip(): line.rsplit("  ", 1)[-1].strip() for line in table.splitlines()}
    assert cells["images"] == "2 (published: 5)" and cells["patients"] == "2"
    assert cells["label left_sign"] == "1/0/0/1" and cells["label other"] == "0/1/1"
    assert cells["images with boxes annotated"] == "1" and cells["box right_lung"] == "1"
    assert cells["mask left_lung"] == "1/0/1" and cells["mask tube"] == "0/0/2"


def test_a_published_total_stands_beside_all_splits(make_dataset: Callable[..., Path], spec: DatasetSpec) -> None:
    dicts = load_split(make_dataset() / "toy" / "train.json", spec, "train")
    table = count_table(replace(spec, expected=(("total", 7),)), {"train": dicts, "test": dicts})
    assert table.splitlines()[2] == "images in all: 4 (published: 7)"
