"""Augmentation: image, boxes and masks move together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from fvcore.transforms.transform import TransformList
from torchvision.transforms import RandomResizedCrop

from fx_d2.data.augmentation import (
    MAX_LIGHT,
    AffineTransform,
    LightTransform,
    RandomAffine,
    RandomAreaCrop,
    RandomLight,
    ResizeTransform,
    build_augmentation,
    split_grid,
)
from fx_d2.data.cache import resize_image
from fx_d2.structures import DatasetSpec, FXError


def _square() -> tuple[np.ndarray, np.ndarray]:
    """An image (80, 120) with a bright rectangle, and its box xyxy."""
    image = np.zeros((80, 120), dtype=np.uint8)
    image[20:50, 30:80] = 200
    return image, np.array([[30.0, 20.0, 80.0, 50.0]])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_image_mask_and_box_agree(cfg: CfgNode, spec: DatasetSpec, task: str, dtype: str) -> None:
    """After any geometry the bright pixels, the mask and the box are the same thing."""
    cfg.INPUT[task.upper()].merge_from_list(
        ["CROP_AREA", 0.8, "PROB", 1.0, "ROTATE", 8.0, "SCALE", 0.1, "SHIFT", 0.05, "BRIGHTNESS", 0.0, "CONTRAST", 0.0]
    )
    cfg.INPUT.SIZE = [160, 240]
    augmentation = build_augmentation(cfg, task, spec)
    image, box = _square()
    image = image.astype(dtype)
    np.random.seed(0)
    flips = []
    for _ in range(12):
        moved, transform, flipped = augmentation.geometry(image)
        flips.append(flipped)
        mask = transform.apply_segmentation((image > 0).astype(np.uint8))
        bright = moved > 100
        assert moved.dtype == image.dtype and moved.shape == mask.shape == (160, 240)
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


def test_what_is_uncovered_is_black_and_background() -> None:
    """A picture that moves to the right leaves nothing behind: no mirrored rim, and no mask of one."""
    transform = AffineTransform(matrix=np.array([[1.0, 0.0, 5.0], [0.0, 1.0, 0.0]]))
    image, mask = np.full((20, 30), 200, dtype=np.uint8), np.ones((20, 30), dtype=np.uint8)
    for moved, inside in ((transform.apply_image(image), 200), (transform.apply_segmentation(mask), 1)):
        assert (moved[:, :5] == 0).all() and (moved[:, 5:] == inside).all()


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


def _film() -> np.ndarray:
    """A picture (256, 224) with the range of a chest film."""
    y, x = np.mgrid[-1:1:256j, -1:1:224j]
    lungs = np.exp(-12 * ((np.abs(x) - 0.4) ** 2 + 0.4 * y**2))
    return np.clip(190 - 140 * lungs + 12 * np.sin(20 * y), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("range_", [None, MAX_LIGHT])
@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_no_picture_becomes_blank(cfg: CfgNode, spec: DatasetSpec, task: str, range_: float | None) -> None:
    """Neither the default ranges of light nor the largest that are allowed leave a picture without contrast.

    The reference clipped normalised images to [0, 1]: half of its segmentation images were a constant.
    """
    cfg.INPUT.SIZE = [64, 64]
    if range_ is not None:
        cfg.INPUT[task.upper()].merge_from_list(["BRIGHTNESS", range_, "CONTRAST", range_])
    augmentation, film = build_augmentation(cfg, task, spec), _film()
    np.random.seed(0)
    for _ in range(150):
        moved = augmentation.geometry(film)[0]
        lit = augmentation.photometry(moved)
        assert lit.astype(float).std() > 0.2 * moved.astype(float).std()
        assert 20 < lit.mean() < 250 and np.ptp(lit) > 30


def test_light_by_hand() -> None:
    """Brightness scales, contrast turns about the mean, bytes are rounded and cut off; floats agree."""
    image = np.array([[0, 100], [200, 100]], dtype=np.uint8)
    transform = LightTransform(brightness=1.2, contrast=0.5)
    assert transform.apply_image(image).tolist() == [[60, 120], [180, 120]]
    np.testing.assert_allclose(transform.apply_image(image.astype(np.float32)), [[60, 120], [180, 120]], rtol=1e-5)
    assert LightTransform(brightness=1.5, contrast=1.0).apply_image(image).tolist() == [[0, 150], [255, 150]]
    bright = LightTransform(brightness=1.5, contrast=1.0).apply_image(image.astype(np.float32))
    assert bright.tolist() == [[0, 150], [255, 150]]
    mask = np.eye(2, dtype=np.uint8)
    np.testing.assert_array_equal(transform.apply_segmentation(mask), mask)


def test_light_stays_in_its_ranges() -> None:
    """Both factors are drawn about 1, each in its own range, and reach its ends."""
    np.random.seed(0)
    draw = RandomLight(brightness=0.1, contrast=0.4)
    drawn = [draw.get_transform(np.zeros((2, 2), np.uint8)) for _ in range(200)]
    for values, reach in (([x.brightness for x in drawn], 0.1), ([x.contrast for x in drawn], 0.4)):
        assert 1 - reach <= min(values) < 1 - 0.9 * reach and 1 + 0.9 * reach < max(values) <= 1 + reach


def test_crop_has_the_distribution_of_random_resized_crop() -> None:
    """Area and aspect ratio as torchvision draws them, within the image, also where it is not square."""
    np.random.seed(0)
    torch.manual_seed(0)
    image = np.zeros((300, 400), dtype=np.uint8)
    ours, theirs = [], []
    for _ in range(600):
        crop = RandomAreaCrop(area=0.08).get_transform(image)
        window = crop.apply_image(image)
        ours.append((window.size / image.size, window.shape[1] / window.shape[0]))
        _, _, h, w = RandomResizedCrop.get_params(torch.zeros(1, 300, 400), [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((h * w / image.size, w / h))
    for share in (0.1, 0.5, 0.9):
        quantiles = np.quantile(ours, share, axis=0), np.quantile(theirs, share, axis=0)
        np.testing.assert_allclose(*quantiles, atol=0.08)
    assert np.min(ours, axis=0)[0] > 0.05


def test_a_crop_that_cannot_fit_is_left_out() -> None:
    """A strip has no window of nearly all its area and a moderate aspect ratio."""
    image = np.arange(400, dtype=np.uint8).reshape(2, 200)
    np.testing.assert_array_equal(RandomAreaCrop(area=0.9).get_transform(image).apply_image(image), image)


def test_affine_stays_in_its_ranges() -> None:
    """Shifts are shares of the side they are along, scales are about 1, turns are degrees, and all reach their ends."""
    np.random.seed(0)
    image = np.zeros((40, 400), dtype=np.uint8)
    draw = RandomAffine(rotate=30, scale=0.2, shift=0.1)
    drawn = [draw.get_transform(image) for _ in range(400)]
    shifts = np.array([x.apply_coords(np.array([[200.0, 20.0]]))[0] - (200, 20) for x in drawn])
    scales = np.array([np.sqrt(np.linalg.det(x.matrix[:, :2])) for x in drawn])
    turns = np.array([np.rad2deg(np.arctan2(x.matrix[0, 1], x.matrix[0, 0])) for x in drawn])
    for values, low, high in ((shifts[:, 0], -40, 40), (shifts[:, 1], -4, 4), (scales, 0.8, 1.2), (turns, -30, 30)):
        span = 0.03 * (high - low)
        assert low <= values.min() < low + span and high - span < values.max() <= high


def test_affine_turns_pixels_about_their_middles() -> None:
    """Half a turn is the picture upside down to the pixel, for images, masks and points."""
    image = np.random.default_rng(0).integers(0, 255, (30, 50), dtype=np.uint8)
    transform = AffineTransform(matrix=np.array([[-1.0, 0.0, 50.0], [0.0, -1.0, 30.0]]))
    np.testing.assert_array_equal(transform.apply_image(image), image[::-1, ::-1])
    np.testing.assert_array_equal(transform.apply_segmentation(image), image[::-1, ::-1])
    assert transform.apply_coords(np.array([[0.0, 0.0], [10.0, 30.0]])).tolist() == [[50.0, 30.0], [40.0, 0.0]]


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_picked_rows_and_columns_move_masks_alike(cfg: CfgNode, spec: DatasetSpec, task: str) -> None:
    """Picking pixels and then the rest equals the whole geometry on the whole mask."""
    cfg.INPUT[task.upper()].merge_from_list(["CROP_AREA", 0.3, "ROTATE", 8.0, "PROB", 0.5])
    augmentation = build_augmentation(cfg, task, spec)
    mask = (np.random.default_rng(0).random((80, 120)) < 0.5).astype(np.uint8)
    np.random.seed(0)
    for _ in range(10):
        _, transform, _ = augmentation.geometry(mask)
        rows, columns, rest = split_grid(transform, (80, 120))
        np.testing.assert_array_equal(
            rest.apply_segmentation(mask[rows][:, columns]), transform.apply_segmentation(mask)
        )


def test_a_pixel_is_looked_up_once(cfg: CfgNode, spec: DatasetSpec) -> None:
    """Reduced as it is read, cropped, resized: the pixel of the original under the middle of the network's."""
    cfg.INPUT.SEG.merge_from_list(["CROP_AREA", 0.3, "FLIP", 0.0, "ROTATE", 0.0, "SCALE", 0.0, "SHIFT", 0.0])
    cfg.INPUT.SIZE = [23, 31]
    augmentation, reading = build_augmentation(cfg, "seg", spec), ResizeTransform(old=(80, 121), new=(50, 77))
    np.random.seed(0)
    for _ in range(10):
        _, transform, _ = augmentation.geometry(np.zeros((50, 77), np.uint8))
        crop = transform.transforms[0]
        picked = split_grid(TransformList([reading]) + transform, (80, 121))
        for found, start, side, new, read, old in (
            (picked[0], crop.y0, crop.h, 23, 50, 80),
            (picked[1], crop.x0, crop.w, 31, 77, 121),
        ):
            numerators = (2 * new * start + side * (2 * i + 1) for i in range(new))
            assert found.tolist() == [x * old // (2 * new * read) for x in numerators]


def test_resize_moves_points_and_masks() -> None:
    """Corners go to corners; the nearest pixel is the one under the middle."""
    transform = ResizeTransform(old=(4, 6), new=(2, 3))
    assert transform.apply_coords(np.array([[6.0, 4.0], [0.0, 2.0]])).tolist() == [[3.0, 2.0], [0.0, 1.0]]
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[:, 3:] = 1
    assert transform.apply_segmentation(mask).tolist() == [[0, 1, 1], [0, 1, 1]]
    assert ResizeTransform(old=(1, 3), new=(1, 1)).apply_segmentation(np.array([[0, 1, 0]], np.uint8)).tolist() == [[1]]


def test_probability_of_affine_and_light(cfg: CfgNode, spec: DatasetSpec) -> None:
    """PROB 0 leaves both out, 0.5 does each about every second time."""
    cfg.INPUT.SEG.merge_from_list(["FLIP", 0.0, "PROB", 0.0])
    film = _film()
    plain = resize_image(film, (32, 48))
    for prob, low, high in ((0.0, 0, 0), (0.5, 20, 40), (1.0, 60, 60)):
        cfg.INPUT.SEG.PROB = prob
        augmentation = build_augmentation(cfg, "seg", spec)
        np.random.seed(0)
        moved = sum(bool((augmentation.geometry(film)[0] != plain).any()) for _ in range(60))
        lit = sum(bool((augmentation.photometry(plain) != plain).any()) for _ in range(60))
        assert low <= moved <= high and low <= lit <= high


@pytest.mark.parametrize("key", ["ROTATE", "SCALE", "SHIFT", "BRIGHTNESS", "CONTRAST"])
def test_a_range_alone(cfg: CfgNode, spec: DatasetSpec, key: str) -> None:
    """Each range works without the others: the first three move the picture, the other two change its light."""
    ranges = dict.fromkeys(("FLIP", "ROTATE", "SCALE", "SHIFT", "BRIGHTNESS", "CONTRAST"), 0.0)
    cfg.INPUT.CLS.update(ranges | {"CROP_AREA": 1.0, "PROB": 1.0, key: 10.0 if key == "ROTATE" else 0.3})
    film, augmentation = _film(), build_augmentation(cfg, "cls", spec)
    plain = resize_image(film, (32, 48))
    np.random.seed(0)
    moved = bool((augmentation.geometry(film)[0] != plain).any())
    lit = bool((augmentation.photometry(plain) != plain).any())
    assert (moved, lit) == (key in ("ROTATE", "SCALE", "SHIFT"), key in ("BRIGHTNESS", "CONTRAST"))


@pytest.mark.parametrize("name", ["Left Lung", "right_clavicle", "LEFT", "leftLung", "lungRight", "LEFT_LUNG"])
def test_a_side_without_a_partner_is_not_flipped(cfg: CfgNode, name: str) -> None:
    """A mirrored left lung is no left lung: the row must say what it is."""
    spec = DatasetSpec(name="sides", title="", seg_classes=(name, "heart"))
    with pytest.raises(FXError, match=rf"INPUT.SEG \(dataset sides\): .*class '{name}' has a side and no partner"):
        build_augmentation(cfg, "seg", spec)
    cfg.INPUT.SEG.FLIP = 0.0
    build_augmentation(cfg, "seg", spec)
    cfg.INPUT.SEG.FLIP = 0.5
    build_augmentation(
        cfg, "seg", DatasetSpec(name="sides", title="", seg_classes=("upright", "cleft", "Bright", "CLEFT", "Leftover"))
    )
