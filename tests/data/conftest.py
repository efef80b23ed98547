"""A tiny dataset of two grey images for the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg

from fx_d2.config import add_fx_config
from fx_d2.data.annotations import write_spec, write_split
from fx_d2.structures import DatasetSpec

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
