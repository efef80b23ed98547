"""Reduced images: the same pixels from the cache as on the fly, and annotations that stay right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from fx_d2.data.annotations import load_split, write_split
from fx_d2.data.cache import cache_images, read_full_size, read_record, read_size, resize_image
from fx_d2.data.mapper import EvalMapper, TrainMapper
from fx_d2.structures import DatasetSpec, FXError

SIZES = {"a.png": (90, 130), "b.jpg": (130, 90), "deep/c.png": (64, 200), "small.png": (20, 30)}
SHORTER = 48


@pytest.fixture
def images(tmp_path: Path) -> list[dict[str, Any]]:
    """Images of several kinds and sizes in the writer's form, with a box and masks; c.png holds 12 bits."""
    rows = []
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        bits = 12 if name == "deep/c.png" else 8
        noise = np.random.default_rng(number).integers(0, 2**bits, (height, width))
        cv2.imwrite(str(path), noise.astype(np.uint16 if bits == 12 else np.uint8))
        mask = np.zeros((height, width), dtype=bool)
        mask[height // 4 : height // 2, width // 4 : width // 2] = True
        box = [width // 4, height // 4, width // 2 - width // 4, height // 2 - height // 4]
        row = {"file_name": name, "height": height, "width": width, "patient_id": f"p{number}", "labels": [1, 0, 0]}
        row |= {"boxes": [("left_lung", box)], "masks": [mask, ~mask, None]}
        if name == "a.png":
            cv2.imwrite(str(tmp_path / "images" / "mask.png"), mask.astype(np.uint8))
            row["masks"][0] = {"file": "mask.png"}
        rows.append(row | ({"intensity": [0, 4095]} if bits == 12 else {}))
    return rows


@pytest.fixture
def both(
    tmp_path: Path, spec: DatasetSpec, images: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of the original images and of their cached copies."""
    cached = cache_images(
        images, image_root=tmp_path / "images", cache_root=tmp_path / "cache", shorter=SHORTER, threads=2
    )
    records = []
    for folder, rows in (("images", images), ("cache", cached)):
        path = tmp_path / f"{folder}.json"
        write_split(path, spec=spec, split="train", image_root=folder, images=rows)
        records.append(load_split(path, spec, "train"))
    return records[0], records[1]


def _equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, second[key], rtol=0, atol=0, equal_nan=True)
        elif key == "instances":
            assert torch.equal(value.gt_boxes.tensor, second[key].gt_boxes.tensor)
        elif key != "file_name":
            assert value == second[key]


def test_cache_equals_reading_at_that_size(
    cfg: CfgNode, spec: DatasetSpec, both: tuple[list[dict[str, Any]], ...]
) -> None:
    """Samples of training and evaluation are equal bit by bit, at the cache's size and below it."""
    for wanted in (SHORTER, 0, 30):
        for original, copy in zip(*both, strict=True):
            here, there = cfg.clone(), cfg.clone()
            here.INPUT.READ_SIZE, there.INPUT.READ_SIZE = wanted or SHORTER, wanted
            if wanted == 30:
                assert read_record(copy, 30).shape == read_record(original, 30).shape
                continue
            for task in ("cls", "loc", "seg"):
                mappers = TrainMapper(here, spec, task), TrainMapper(there, spec, task)
                for seed in range(3):
                    _equal(mappers[0](original, seed), mappers[1](copy, seed))
            _equal(EvalMapper(here, spec)(original), EvalMapper(there, spec)(copy))


def test_annotations_stay_on_their_pixels(
    cfg: CfgNode, spec: DatasetSpec, both: tuple[list[dict[str, Any]], ...]
) -> None:
    """Boxes of the reduced image are those of the full one; masks agree but for their outline."""
    for task in ("LOC", "SEG"):
        cfg.INPUT[task].merge_from_list(["FLIP", 0.0, "CROP_AREA", 1.0, "ROTATE", 0.0, "SCALE", 0.0, "SHIFT", 0.0])
    for original, copy in zip(*both, strict=True):
        boxes = [TrainMapper(cfg, spec, "loc")(record, 0)["instances"].gt_boxes.tensor for record in (original, copy)]
        torch.testing.assert_close(boxes[0], boxes[1])
        masks = [TrainMapper(cfg, spec, "seg")(record, 0)["masks"] for record in (original, copy)]
        assert (masks[0] != masks[1]).float().mean() < 0.05 and masks[1][0].any()


def test_sizes_and_names(tmp_path: Path, both: tuple[list[dict[str, Any]], ...]) -> None:
    """The shorter side is the cache's, aspect kept; small images are not enlarged; annotations keep their size."""
    stored = {Path(record["file_name"]).relative_to(tmp_path / "cache").as_posix(): record for record in both[1]}
    assert {name: record["stored_size"] for name, record in stored.items()} == {
        "a.png": [48, 69],
        "b.jpg.png": [69, 48],
        "deep/c.png": [48, 150],
        "small.png": [20, 30],
    }
    for record in both[1]:
        assert read_record(record).shape == tuple(record["stored_size"])
        assert read_full_size(record).shape == (record["height"], record["width"])
        assert record["intensity"] is None
    assert read_size(90, 130, 0) == (90, 130) and read_size(1000, 3, 2) == (667, 2)
    assert read_size(90, 130, 100) == (90, 130) == read_size(90, 130, 90)


def test_cache_goes_on_where_it_stopped(tmp_path: Path, images: list[dict[str, Any]]) -> None:
    """What is there is kept; a changed source or range is made anew."""

    def times() -> dict[str, int]:
        cache_images(images, image_root=tmp_path / "images", cache_root=tmp_path / "cache", shorter=SHORTER)
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}

    first = times()
    assert len(first) == 4 and times() == first
    images[2]["intensity"] = [0, 8191]
    os.utime(tmp_path / "images" / "a.png", ns=(1, 1))
    (tmp_path / "cache" / "small.png").write_bytes(b"half")
    second = times()
    assert {name for name in first if first[name] != second[name]} == {"a.png", "c.png", "small.png"}


def test_refusals(tmp_path: Path, images: list[dict[str, Any]], both: tuple[list[dict[str, Any]], ...]) -> None:
    """A cache that is too small or too coarse, names that leave the folder, images that are not what they should be."""
    copy = both[1][0]
    with pytest.raises(FXError, match=r"a.png: cached at 69 x 48, smaller than INPUT.READ_SIZE 50"):
        read_record(copy, 50)
    with pytest.raises(FXError, match="the cache has 8 bits: INPUT.DTYPE 'float32'"):
        read_record(copy, dtype="float32")
    roots = {"image_root": tmp_path / "images", "cache_root": tmp_path / "cache"}
    for change, message in (
        ({"file_name": "../a.png"}, "outside its folder"),
        ({"file_name": "none.png"}, "none.png: image file cannot be read"),
        ({"width": 131}, r"a.png: the image is 130 x 90 pixels, but its annotation says 131 x 90"),
    ):
        with pytest.raises(FXError, match=message):
            cache_images([images[0] | change], **roots, shorter=SHORTER)
    with pytest.raises(FXError, match="the cache size is 0"):
        cache_images(images, **roots, shorter=0)


def test_resize_averages() -> None:
    """Halves are exact means, fine patterns become grey, and a constant stays one, also where one side grows."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    means = image.reshape(32, 2, 48, 2).mean(axis=(1, 3))
    assert np.abs(resize_image(image, (32, 48)).astype(float) - means).max() <= 0.5
    checkers = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for size in ((224, 224), (100, 130), (256, 256)):
        assert np.abs(resize_image(checkers, size).astype(float) - 127.5).max() < 20
    for size in ((31, 200), (200, 31), (200, 300), (7, 9), (64, 96)):
        grey = resize_image(np.full((64, 96), 77, dtype=np.uint8), size)
        assert grey.shape == size and (grey == 77).all()
        difference = resize_image(image.astype(np.float32), size) - resize_image(image, size)
        assert np.abs(difference).max() < 3
    np.testing.assert_array_equal(resize_image(image, (64, 96)), image)
