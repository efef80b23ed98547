"""Films in two datasets, and leaving them out of training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode

from fx_d2.data.annotations import load_spec, load_split, write_split
from fx_d2.data.catalog import get_dicts, register_datasets
from fx_d2.data.inspection import inspect_split
from fx_d2.data.loaders import build_train_data, training_dicts
from fx_d2.data.overlap import (
    Overlap,
    excluded_images,
    find_overlaps,
    known_families,
    training_leaks,
    write_exclusions,
)
from fx_d2.structures import DatasetSpec, FXError


@pytest.fixture
def two(cfg: CfgNode, make_dataset: Callable[..., Path], spec: DatasetSpec) -> CfgNode:
    """toy_train and other_test; other_test's first film is a reduced negative of toy_train's second."""
    root = make_dataset()
    make_dataset(splits=("test",), row=replace(spec, name="other"))
    for number in range(2):
        pixels = np.random.default_rng(100 + number).integers(0, 255, (40, 60), dtype=np.uint8)
        cv2.imwrite(str(root / "other" / "images" / f"test_{'ab'[number]}.png"), pixels)
    film = cv2.imread(str(root / "toy" / "images" / "train_b.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(root / "other" / "images" / "test_a.png"), 255 - film)
    cfg.DATASETS.TEST = ("other_test",)
    register_datasets(cfg)
    return cfg


def leaks(cfg: CfgNode) -> tuple[list[Overlap], dict[str, list]]:
    dicts = {name: get_dicts(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    prints = {name: inspect_split(records).prints for name, records in dicts.items()}
    return training_leaks(find_overlaps(dicts, prints)), dicts


def test_the_shared_film_is_found_and_left_out(two: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, dicts = leaks(two)
    assert [(leak.split, leak.index, leak.other, leak.other_index) for leak in found] == [
        ("toy_train", 1, "other_test", 0)
    ]
    file = tmp_path / "leaks.json"
    assert write_exclusions(file, found, dicts) == {"toy_train": 1}
    two.DATASETS.EXCLUDE = str(file)
    with caplog.at_level(logging.INFO):
        assert build_train_data(two).sizes == {("toy", "cls"): 1, ("toy", "loc"): 1, ("toy", "seg"): 1}
    assert "toy_train: 1 of 2 images excluded" in caplog.text
    assert excluded_images(file, "other_test") == frozenset()
    assert "other_test" in json.loads(file.read_text())["splits"]["toy_train"]["images"][0]["reason"]


def test_limit_counts_what_is_left(two: CfgNode, tmp_path: Path) -> None:
    found, dicts = leaks(two)
    two.DATASETS.EXCLUDE, two.DATASETS.LIMIT = str(tmp_path / "leaks.json"), 1
    write_exclusions(tmp_path / "leaks.json", [replace(found[0], index=0)], dicts)
    assert training_dicts(two, "toy_train") == dicts["toy_train"][1:]


def test_by_patient(two: CfgNode, tmp_path: Path, images: list[dict]) -> None:
    """Another film of the same patient goes, too, and training without any image is refused."""
    spec = load_spec(tmp_path / "toy")
    rows = [image | {"file_name": f"train_{image['file_name']}", "patient_id": "one"} for image in images]
    write_split(tmp_path / "toy" / "train.json", spec=spec, split="train", image_root="images", images=rows)
    found, dicts = leaks(two)
    two.DATASETS.EXCLUDE = str(tmp_path / "leaks.json")
    assert write_exclusions(tmp_path / "leaks.json", found, dicts) == {"toy_train": 1}
    assert write_exclusions(tmp_path / "leaks.json", found, dicts, by_patient=True) == {"toy_train": 2}
    with pytest.raises(FXError, match="excludes all of its 2 images"):
        build_train_data(two)


def test_twice_in_a_split_and_validation(two: CfgNode, tmp_path: Path, spec: DatasetSpec) -> None:
    """A film is not its own overlap; twins within a split are; val is held out when asked for."""
    dicts = {"toy_train": load_split(tmp_path / "toy" / "train.json", spec, "train")}
    dicts["toy_train"][0]["file_name"] = dicts["toy_train"][1]["file_name"]
    found = find_overlaps(dicts, {"toy_train": inspect_split(dicts["toy_train"]).prints})
    assert [(overlap.index, overlap.other_index) for overlap in found] == [(0, 1)] and not training_leaks(found)
    validation = Overlap("a_val", 3, "b_train", 4, 0.9)
    assert training_leaks([validation]) == []
    assert training_leaks([validation], ("val",)) == [Overlap("b_train", 4, "a_val", 3, 0.9)]


def test_refused(two: CfgNode, tmp_path: Path) -> None:
    """A file that is missing, is another thing, or speaks of other annotations."""
    found, dicts = leaks(two)
    file = tmp_path / "leaks.json"
    with pytest.raises(FXError, match="leaks.json not found.*check_datasets"):
        excluded_images(file, "toy_train")
    head = '{"format": "fx_d2 exclusions", "splits": '
    for text in ("{", "[]", '{"format": "coco", "splits": {}}', head + "[]}", head + '{"toy_train": {"images": []}}}'):
        file.write_text(text)
        with pytest.raises(FXError, match="is not a file that"):
            excluded_images(file, "toy_train")
    write_exclusions(file, found, dicts)
    annotations = tmp_path / "toy" / "train.json"
    annotations.write_text(annotations.read_text().replace('"source":""', '"source":"x"'))
    with pytest.raises(FXError, match="other annotations of toy_train"):
        excluded_images(file, "toy_train")


def test_families() -> None:
    assert known_families(["jsrt", "chexpert"]) == []
    (line,) = known_families(["jsrt", "node21", "chexpert"])
    assert line.startswith("jsrt, node21: ")
    assert len(known_families(["node21", "nih_chestxray14", "jsrt", "tbx11k", "nih_shenzhen"])) == 3
