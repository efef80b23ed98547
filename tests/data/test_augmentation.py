"""Augmentation: image, boxes and masks move together."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import CfgNode

from fx_d2.data.augmentation import AffineTransform, RandomAffine, build_augmentation, resize_image
from fx_d2.structures import DatasetSpec, FXError


def _square() -> tuple[np.ndarray, np.ndarray]:
    """An image (80, 120) with a bright rectangle, and its box xyxy."""
    image = np.zeros((80, 120), dtype=np.uint8)
    image[20:50, 30:80] = 200
    return image, np.array([[30.0, 20.0, 80.0, 50.0]])


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_image_mask_and_box_agree(cfg: CfgNode, spec: DatasetSpec, task: str) -> None:
    """After any geometry the bright pixels, the mask and the box are the same thing."""
    cfg.INPUT[task.upper()].merge_from_list(
        ["CROP", 0.9, "ROTATE", 8.0, "SCALE", 0.1, "SHIFT", 0.05, "BRIGHTNESS", 0.0, "CONTRAST", 0.0]
    )
    cfg.INPUT.SIZE = [160, 240]
    augmentation = build_augmentation(cfg, task, spec)
    image, box = _square()
    np.random.seed(0)
    flips = []
    for _ in range(12):
        moved, transform, flipped = augmentation.geometry(image)
        flips.append(flipped)
        mask = transform.apply_segmentation((image > 0).astype(np.uint8))
        bright = moved > 100
        assert moved.shape == mask.shape == (160, 240)
        assert (bright & (mask > 0)).sum() > 0.97 * max(bright.sum(), mask.sum())
        ys, xs = np.nonzero(bright)
        x0, y0, x1, y1 = np.asarray(transform.apply_box(box.copy()))[0]
        assert abs(x0 - xs.min()) < 4 and abs(x1 - xs.max() - 1) < 4
        assert abs(y0 - ys.min()) < 4 and abs(y1 - ys.max() - 1) < 4
    assert 0 < sum(flips) < 12


def test_nothing_to_do_is_a_resize(cfg: CfgNode, spec: DatasetSpec) -> None:
    """With every range at zero, training sees what evaluation sees."""
    cfg.INPUT.LOC.merge_from_list(["FLIP", 0.0, "BRIGHTNESS", 0.0, "CONTRAST", 0.0])
    augmentation = build_augmentation(cfg, "loc", spec)
    image, _ = _square()
    moved, _, flipped = augmentation.geometry(image)
    assert not flipped
    np.testing.assert_array_equal(augmentation.photometry(moved), resize_image(image, (32, 48)))


def test_identity_affine() -> None:
    """Zero ranges give the same pixels: no half-pixel shift."""
    image = np.random.default_rng(0).integers(0, 255, (30, 50), dtype=np.uint8)
    transform = RandomAffine(rotate=0, scale=0, shift=0).get_transform(image)
    assert isinstance(transform, AffineTransform)
    np.testing.assert_array_equal(transform.apply_image(image), image)


def test_photometry_changes_only_light(cfg: CfgNode, spec: DatasetSpec) -> None:
    """Two draws differ, the source does not change."""
    augmentation = build_augmentation(cfg, "cls", spec)
    image, _ = _square()
    before = image.copy()
    np.random.seed(1)
    first, second = augmentation.photometry(image), augmentation.photometry(image)
    assert (first != second).any() and first.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


def test_out_of_range_is_named(cfg: CfgNode, spec: DatasetSpec) -> None:
    """A wrong value names its key."""
    cfg.INPUT.SEG.FLIP = 2.0
    with pytest.raises(FXError, match=r"INPUT.SEG.*FLIP is 2.0"):
        build_augmentation(cfg, "seg", spec)
