"""A tiny dataset of two grey images, and a plain folder, for the data tests."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg

from fx_d2.config import add_fx_config
from fx_d2.data.annotations import write_spec, write_split
from fx_d2.structures import DatasetSpec

PROJECT = Path(__file__).parents[2]
HEIGHT, WIDTH = 40, 60


@pytest.fixture
def spec() -> DatasetSpec:
    """A row with all three tasks and a pair of sides."""
    return DatasetSpec(
        name="toy",
        title="Toy",
        cls_classes=("left_sign", "right_sign", "other"),
        loc_classes=("left_lung", "right_lung"),
        seg_classes=("left_lung", "right_lung", "tube"),
        flip_pairs=(("left_sign", "right_sign"), ("left_lung", "right_lung")),
    )


@pytest.fixture
def images() -> list[dict[str, Any]]:
    """Two images in the writer's form: one with everything, one with labels alone."""
    left = np.zeros((HEIGHT, WIDTH), dtype=bool)
    left[10:30, 40:56] = True
    full = {
        "file_name": "a.png",
        "width": WIDTH,
        "height": HEIGHT,
        "patient_id": "p0",
        "study_id": "s7",
        "labels": [1, 0, None],
        "boxes": [("left_lung", [40, 10, 16, 20]), ("right_lung", [4, 10, 16, 20])],
        "masks": [left, left[:, ::-1], None],
    }
    poor = {"file_name": "b.png", "width": WIDTH, "height": HEIGHT, "patient_id": "p1", "labels": [-1, 1, 0]}
    return [full, poor]


@pytest.fixture
def make_dataset(tmp_path: Path, spec: DatasetSpec, images: list[dict[str, Any]]) -> Callable[..., Path]:
    """A function that prepares the toy dataset under a root and returns the root."""

    def make(root: Path = tmp_path, splits: tuple[str, ...] = ("train",), row: DatasetSpec = spec) -> Path:
        folder = root / row.name
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for split in splits:
            rows = [image | {"file_name": f"{split}_{image['file_name']}"} for image in images]
            rows = [image | {"patient_id": f"{split}_{image['patient_id']}"} for image in rows]
            for number, image in enumerate(rows):
                pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
                cv2.imwrite(str(folder / "images" / image["file_name"]), pixels)
            write_split(folder / f"{split}.json", spec=row, split=split, image_root="images", images=rows)
        write_spec(folder, row)
        return root

    return make


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """A config for the toy dataset, in this process, at 32 x 48 pixels."""
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.DATASETS.ROOT = str(tmp_path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("toy_train",), ("toy_test",)
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.SIZE = [32, 48]
    cfg.SCHEDULE.BATCH_SIZE.CLS = cfg.SCHEDULE.BATCH_SIZE.LOC = cfg.SCHEDULE.BATCH_SIZE.SEG = 4
    cfg.SEED = 7
    return cfg


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """datasets/prepare_folder.py as a module, for the tests of plain folders."""
    found = importlib.util.spec_from_file_location("prepare_folder", PROJECT / "datasets" / "prepare_folder.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A plain folder with every kind of annotation: images 0, 1 in train, 2 in test."""
    root = tmp_path / "src"
    for part in ("images", "splits", "masks/left_lung", "masks/right_lung", "masks/ignore"):
        (root / part).mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(root / "images" / f"{i}.png"), np.full((20, 30), 40 * i, dtype=np.uint8))
        cv2.imwrite(str(root / "masks" / "left_lung" / f"{i}.png"), np.full((20, 30), 255, dtype=np.uint8))
        cv2.imwrite(str(root / "masks" / "ignore" / f"{i}.png"), np.full((20, 30), 255, dtype=np.uint8))
    (root / "labels.csv").write_bytes(
        "\ufeffimage,patient_id,sex,tb,other\r\n0.png,a,F,1,0\r\n1.png,b,,0,\r\n2.png,c,M,-1,1\r\n".encode()
    )
    (root / "masks_index.csv").write_text("image,left_lung,right_lung,ignore\n0.png,1,0,1\n1.png,,,\n2.png,1,,0\n")
    (root / "splits" / "train.txt").write_bytes(b"\xef\xbb\xbf0.png\r\n1.png\r\n")
    (root / "splits" / "test.txt").write_text("2.png\n")
    categories = [{"id": 7, "name": "tb"}]
    rows = [{"id": 5, "file_name": "0.png", "width": 30, "height": 20}]
    boxes = [{"id": 1, "image_id": 5, "category_id": 7, "bbox": [2, 3, 10, 9], "area": 90, "iscrowd": 0}]
    train = {"images": rows, "annotations": boxes, "categories": categories}
    (root / "boxes_train.json").write_text(json.dumps(train))
    rows = [{"id": 1, "file_name": "2.png", "width": 30, "height": 20}]
    (root / "boxes_test.json").write_text(json.dumps({"images": rows, "annotations": [], "categories": categories}))
    description = {
        "name": "tiny",
        "splits": {"train": "splits/train.txt", "test": "splits/test.txt"},
        "labels": {"file": "labels.csv", "columns": ["tb", "other"]},
        "boxes": {"drawn": {"files": {s: f"boxes_{s}.json" for s in ("train", "test")}, "categories": ["tb"]}},
        "masks": {"structures": ["left_lung", "right_lung"], "ignore": "ignore"},
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root
