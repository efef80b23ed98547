"""A tiny world on disk and a config that trains on it in seconds."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode

from fx_d2.data import register_datasets, write_spec, write_split
from fx_d2.engine import build_cfg
from fx_d2.structures import DatasetSpec

SIZE = 64
ALPHA = DatasetSpec(
    name="alpha",
    title="Alpha",
    cls_classes=("left_blob", "right_blob"),
    loc_classes=("left_blob", "right_blob"),
    seg_classes=("left_blob", "right_blob"),
    flip_pairs=(("left_blob", "right_blob"),),
)
BETA = DatasetSpec(name="beta", title="Beta", cls_classes=("dark", "grey", "bright"), cls_kind="softmax")


def _alpha_image(rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    pixels = rng.integers(0, 60, (SIZE, SIZE), dtype=np.uint8)
    labels, boxes, masks = [], [], []
    for side, name in enumerate(ALPHA.loc_classes):
        mask = np.zeros((SIZE, SIZE), bool)
        if rng.random() < 0.6:
            x, y = int(rng.integers(2, 14)) + side * 32, int(rng.integers(4, 40))
            mask[y : y + 16, x : x + 14] = True
            boxes.append((name, [x, y, 14, 16]))
        pixels[mask] = 220
        labels.append(int(mask.any()))
        masks.append(mask)
    return pixels, {"labels": labels, "boxes": boxes, "masks": masks}


def _beta_image(rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    kind = int(rng.integers(3))
    pixels = (rng.integers(0, 40, (SIZE, SIZE)) + 90 * kind).astype(np.uint8)
    return pixels, {"labels": [int(kind == k) for k in range(3)], "boxes": None, "masks": None}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared root with datasets alpha (three tasks) and beta (three-class softmax), splits train, test and val."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for spec, draw in ((ALPHA, _alpha_image), (BETA, _beta_image)):
        folder = root / spec.name
        (folder / "images").mkdir(parents=True)
        write_spec(folder, spec)
        for split, count in (("train", 10), ("test", 6), ("val", 4)):
            rows = []
            for i in range(count):
                pixels, truth = draw(rng)
                name = f"{split}_{i}.png"
                cv2.imwrite(str(folder / "images" / name), pixels)
                rows.append({"file_name": name, "width": SIZE, "height": SIZE, "patient_id": name} | truth)
            write_split(folder / f"{split}.json", spec=spec, split=split, image_root="images", images=rows)
    return root


CONFIG = """
VERSION: 2
SEED: 3
DATASETS: {TRAIN: [alpha_train, beta_train], TEST: [alpha_test, beta_test]}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {SIZE: [64, 64]}
MODEL:
  DEVICE: cpu
  TIMM:
    NAME: swin_tiny_patch4_window7_224
    KWARGS: {embed_dim: 16, depths: [1, 1, 1, 1], num_heads: [1, 2, 2, 4]}
    DROP_PATH: 0.2
    IN_CHANS: 1
  LOC: {HIDDEN_DIM: 32, NUM_HEADS: 2, FFN_DIM: 32, ENC_LAYERS: 1, DEC_LAYERS: 2, NUM_QUERIES: 8, DN_NUMBER: 4}
  SEG: {DIM: 16, POOL_BINS: [1, 2]}
SCHEDULE: {CYCLES: 1, BATCH_SIZE: {CLS: 4, LOC: 4, SEG: 4}}
SOLVER: {BASE_LR: 0.001}
"""

MakeCfg = Callable[..., CfgNode]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """The tiny config as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def make_cfg(world: Path, config_file: Path, tmp_path: Path) -> MakeCfg:
    """Function (KEY, VALUE, ...) -> frozen tiny config with its datasets registered; output under tmp_path/run."""

    def make(*opts: str) -> CfgNode:
        base = ["DATASETS.ROOT", str(world), "OUTPUT_DIR", str(tmp_path / "run")]
        cfg = build_cfg(str(config_file), [*base, *opts])
        register_datasets(cfg)
        cfg.freeze()
        return cfg

    return make
