"""The mappers: shapes, policies, sides, and equal seeds giving equal samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from fvcore.transforms.transform import CropTransform, TransformList

from fx_d2.data.annotations import load_split, write_split
from fx_d2.data.augmentation import ResizeTransform
from fx_d2.data.mapper import EvalMapper, TrainMapper, _instances, apply_label_policy
from fx_d2.data.masks import encode_mask
from fx_d2.structures import DatasetSpec, FXError


@pytest.fixture
def records(make_dataset: Callable[..., Path], spec: DatasetSpec) -> list[dict[str, Any]]:
    """The toy training split."""
    return load_split(make_dataset() / "toy" / "train.json", spec, "train")


def _flat(sample: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = {key: value for key, value in sample.items() if isinstance(value, torch.Tensor)}
    if "instances" in sample:
        tensors |= {"boxes": sample["instances"].gt_boxes.tensor, "classes": sample["instances"].gt_classes}
    return tensors


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_same_seed_same_sample(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]], task: str) -> None:
    """A sample is a function of record and seed, and numpy's own state is left alone."""
    mapper = TrainMapper(cfg, spec, task)
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    first = mapper(records[0], 11)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.random.seed(4)
    second, third = mapper(records[0], 11), mapper(records[0], 12)
    for key, tensor in _flat(first).items():
        torch.testing.assert_close(tensor, _flat(second)[key], rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(first["image"], third["image"])
    assert first["image"].shape == first["teacher_image"].shape == (1, 32, 48)
    assert not torch.equal(first["image"], first["teacher_image"])


def test_flip_swaps_sides(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """The patient's left stays left: labels, boxes and masks change names together."""
    for task in ("CLS", "LOC", "SEG"):
        cfg.INPUT[task].merge_from_list(["FLIP", 1.0, "CROP_AREA", 1.0, "ROTATE", 0.0, "SCALE", 0.0, "SHIFT", 0.0])
    labels = TrainMapper(cfg, spec, "cls")(records[0], 0)["labels"]
    assert labels[:2].tolist() == [0.0, 1.0] and labels[2].isnan()
    instances = TrainMapper(cfg, spec, "loc")(records[0], 0)["instances"]
    assert instances.gt_classes.tolist() == [1, 0]
    torch.testing.assert_close(instances.gt_boxes.tensor[0], torch.tensor([3.2, 8.0, 16.0, 24.0]))
    sample = TrainMapper(cfg, spec, "seg")(records[0], 0)
    assert sample["mask_known"].tolist() == [True, True, False]
    assert sample["masks"][0, :, 24:].sum() > 0 and sample["masks"][0, :, :24].sum() == 0


def test_segmentation_sample(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """Binary float masks, unknown channels flagged, ignored pixels invalid."""
    ignore = np.zeros((40, 60), dtype=bool)
    ignore[:, :30] = True
    records[0]["ignore_mask"] = encode_mask(ignore)
    cfg.INPUT.SEG.merge_from_list(["FLIP", 0.0, "ROTATE", 0.0, "SCALE", 0.0, "SHIFT", 0.0])
    sample = TrainMapper(cfg, spec, "seg")(records[0], 0)
    assert sample["masks"].dtype == torch.bool and sample["masks"].any() and not sample["masks"].all()
    assert sample["mask_valid"].dtype == torch.bool and not sample["mask_valid"][:, :24].any()
    assert sample["mask_valid"][:, 24:].all()


def test_masks_that_turn_together_do_not_mix(cfg: CfgNode, records: list[dict[str, Any]]) -> None:
    """Ten masks under rotation, scale and shift are what each is alone: inside or outside, never between two bytes."""
    names = tuple(f"m{i}" for i in range(10))
    masks = [encode_mask(mask) for mask in np.random.default_rng(0).random((10, 40, 60)) < 0.5]
    cfg.INPUT.SEG.merge_from_list(["PROB", 1.0, "ROTATE", 20.0, "SCALE", 0.2, "SHIFT", 0.1])
    together = TrainMapper(cfg, DatasetSpec(name="many", title="", seg_classes=names), "seg")
    alone = TrainMapper(cfg, DatasetSpec(name="one", title="", seg_classes=("m",)), "seg")
    for seed in range(3):
        found = together(records[0] | {"masks": masks}, seed)["masks"]
        for plane, mask in zip(found, masks, strict=True):
            assert torch.equal(plane, alone(records[0] | {"masks": [mask]}, seed)["masks"][0])


@pytest.mark.parametrize("read_size", [0, 25, 37])
def test_targets_are_the_truth_of_the_metric(
    cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]], read_size: int
) -> None:
    """Without augmentation, training asks for the masks that evaluation compares with, however images are read."""
    cfg.INPUT.SEG.merge_from_list(["FLIP", 0.0, "CROP_AREA", 1.0, "ROTATE", 0.0, "SCALE", 0.0, "SHIFT", 0.0])
    cfg.INPUT.READ_SIZE, cfg.INPUT.SIZE = read_size, [13, 17]
    masks = np.random.default_rng(0).random((3, 40, 60)) < 0.5
    records[0]["masks"] = [encode_mask(mask) for mask in masks]
    found = TrainMapper(cfg, spec, "seg")(records[0], 0)["masks"]
    shrink = ResizeTransform(old=(40, 60), new=(13, 17)).apply_segmentation
    np.testing.assert_array_equal(found.numpy(), [shrink(mask) for mask in masks])


def test_more_than_eight_masks(cfg: CfgNode, records: list[dict[str, Any]]) -> None:
    """Masks travel eight to a byte; the ninth and tenth arrive in their places."""
    names = tuple(f"m{i}" for i in range(10))
    masks = [np.zeros((40, 60), dtype=bool) for _ in names]
    for i, mask in enumerate(masks):
        mask[:, 6 * i : 6 * i + 6] = True
    records[0]["masks"] = [encode_mask(mask) for mask in masks]
    cfg.INPUT.SEG.merge_from_list(["FLIP", 0.0, "ROTATE", 0.0, "SCALE", 0.0, "SHIFT", 0.0])
    cfg.INPUT.SIZE = [40, 60]
    sample = TrainMapper(cfg, DatasetSpec(name="many", title="", seg_classes=names), "seg")(records[0], 0)
    np.testing.assert_array_equal(sample["masks"].numpy(), np.stack(masks).astype(bool))


def test_cut_boxes(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """Boxes stay in the picture and have an area, whatever the crop."""
    cfg.INPUT.LOC.merge_from_list(["CROP_AREA", 0.1, "SHIFT", 0.3])
    mapper = TrainMapper(cfg, spec, "loc")
    for seed in range(20):
        boxes = mapper(records[0], seed)["instances"].gt_boxes
        assert boxes.nonempty().all() and (boxes.tensor[:, 2] <= 48).all() and (boxes.tensor >= 0).all()


def test_a_box_with_little_left_is_dropped() -> None:
    """A tenth of the area must remain in the picture; what remains is the target."""
    rows = [{"bbox": [x, 5, 20, 10], "category_id": i} for i, x in enumerate((5, 28, 28.5, 45))]
    window = TransformList([CropTransform(0, 0, 30, 40, 60, 40)])
    instances = _instances(rows, window, (40, 30), [0, 1, 2, 3])
    assert instances.gt_classes.tolist() == [0, 1]
    assert instances.gt_boxes.tensor.tolist() == [[5, 5, 25, 15], [28, 5, 30, 15]]


def test_image_without_boxes(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """A true negative has empty instances."""
    records[0]["annotations"] = []
    instances = TrainMapper(cfg, spec, "loc")(records[0], 0)["instances"]
    assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)


def test_label_policies(spec: DatasetSpec) -> None:
    """Uncertain and blank labels after each policy; soft is redrawn and unknown in evaluation."""
    labels = [-1, None, 1]
    for policy, value in (("ones", 1.0), ("zeros", 0.0)):
        out = apply_label_policy(labels, replace(spec, uncertain=policy, blank="zeros"), training=True)
        assert out.tolist() == [value, 0.0, 1.0]
    assert np.isnan(apply_label_policy(labels, spec, training=True)).tolist() == [True, True, False]
    soft = replace(spec, uncertain="soft")
    draws = {float(apply_label_policy(labels, soft, training=True)[0]) for _ in range(5)}
    assert len(draws) == 5 and all(0.55 <= value <= 0.85 for value in draws)
    assert np.isnan(apply_label_policy(labels, soft, training=False)[0])


def test_soft_labels_are_drawn_with_each_sample(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """Not frozen when the file is loaded: another seed, another target; and a flip takes it to the other side.

    Evaluation has no such draw: it knows nothing of the label.
    """
    cfg.INPUT.CLS.FLIP = 0.0
    mapper = TrainMapper(cfg, replace(spec, uncertain="soft"), "cls")
    drawn = [mapper(records[1], seed)["labels"] for seed in range(6)]
    assert len({float(labels[0]) for labels in drawn}) == 6 and all(0.55 <= labels[0] <= 0.85 for labels in drawn)
    assert all(labels[1:].tolist() == [1.0, 0.0] for labels in drawn)
    assert torch.equal(mapper(records[1], 3)["labels"], drawn[3])
    cfg.INPUT.CLS.FLIP = 1.0
    flipped = TrainMapper(cfg, replace(spec, uncertain="soft"), "cls")(records[1], 3)["labels"]
    assert flipped[0] == 1.0 and 0.55 <= flipped[1] <= 0.85
    assert EvalMapper(cfg, replace(spec, uncertain="soft"))(records[1])["labels"].isnan().tolist() == [
        True,
        False,
        False,
    ]


def test_evaluation_sample(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """The image at network size, the annotation in original pixels."""
    sample = EvalMapper(cfg, spec)(records[0])
    assert sample["image"].shape == (1, 32, 48) and sample["image"].dtype == torch.uint8
    assert sample["annotations"] == records[0]["annotations"] and sample["masks"] == records[0]["masks"]
    assert sample["labels"].isnan().tolist() == [False, False, True]
    records[0]["annotated"]["cls"] = False
    assert "labels" not in EvalMapper(cfg, spec)(records[0])


def test_wrong_size_is_named(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """An image that changed after preparation is refused."""
    cv2.imwrite(records[0]["file_name"], np.zeros((10, 10), dtype=np.uint8))
    for call in (lambda: TrainMapper(cfg, spec, "cls")(records[0], 0), lambda: EvalMapper(cfg, spec)(records[0])):
        with pytest.raises(FXError, match=r"train_a.png: the image is 10 x 10 pixels, but its annotation says 60 x 40"):
            call()


def test_teacher_view(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """No second view where nobody looks at it; another word is refused."""
    for enabled, weight in ((False, 1.0), (True, 0.0)):
        cfg.MODEL.TEACHER.ENABLED, cfg.MODEL.TEACHER.CONSISTENCY = enabled, weight
        assert "teacher_image" not in TrainMapper(cfg, spec, "cls")(records[0], 0)
    cfg.MODEL.TEACHER.CONSISTENCY = 1.0
    cfg.MODEL.TEACHER.ENABLED, cfg.INPUT.TEACHER_VIEW = True, "other"
    with pytest.raises(FXError, match="TEACHER_VIEW"):
        TrainMapper(cfg, spec, "cls")


def test_all_tasks_see_the_same_grey_values(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """Without augmentation the three tasks and evaluation hand on one picture: normalising is the model's alone."""
    off = {"FLIP": 0.0, "CROP_AREA": 1.0, "ROTATE": 0.0, "SCALE": 0.0, "SHIFT": 0.0, "BRIGHTNESS": 0.0, "CONTRAST": 0.0}
    wanted = EvalMapper(cfg, spec)(records[0])["image"]
    for task in ("cls", "loc", "seg"):
        cfg.INPUT[task.upper()].update(off)
        sample = TrainMapper(cfg, spec, task)(records[0], 5)
        assert torch.equal(sample["image"], wanted) and torch.equal(sample["teacher_image"], wanted)


def test_float_images_keep_depth(cfg: CfgNode, spec: DatasetSpec, records: list[dict[str, Any]]) -> None:
    """INPUT.DTYPE float32: 0..255 without rounding, so a 12-bit ramp has more than 256 values."""
    ramp = np.arange(40 * 60).reshape(40, 60)
    cv2.imwrite(records[0]["file_name"], ramp.astype(np.uint16))
    records[0]["intensity"] = [0, 2399]
    cfg.INPUT.SIZE, cfg.INPUT.DTYPE = [40, 60], "float32"
    image = EvalMapper(cfg, spec)(records[0])["image"]
    torch.testing.assert_close(image[0], torch.from_numpy(ramp / 2399 * 255).float(), rtol=1e-5, atol=1e-4)
    for task in ("cls", "loc", "seg"):
        sample = TrainMapper(cfg, spec, task)(records[0], 1)
        for view in ("image", "teacher_image"):
            assert sample[view].dtype == torch.float32 and len(sample[view].unique()) > 500
            assert sample[view].min() >= 0 and sample[view].max() <= 255
    cfg.INPUT.DTYPE = "float16"
    for build in (lambda: TrainMapper(cfg, spec, "cls"), lambda: EvalMapper(cfg, spec)):
        with pytest.raises(FXError, match=r"INPUT.DTYPE must be .* not 'float16'"):
            build()


def test_masks_in_files(
    tmp_path: Path, cfg: CfgNode, spec: DatasetSpec, images: list[dict[str, Any]], records: list[dict[str, Any]]
) -> None:
    """A mask named by its file gives the sample that its run-length code gives; a bad file is named."""
    (tmp_path / "toy" / "images" / "masks").mkdir()
    for number, mask in enumerate(images[0]["masks"][:2]):
        cv2.imwrite(str(tmp_path / "toy" / "images" / "masks" / f"{number}.png"), mask.astype(np.uint8) * 255)
    row = images[0] | {"file_name": "train_a.png", "masks": [{"file": "masks/0.png"}, {"file": "masks/1.png"}, None]}
    write_split(tmp_path / "toy" / "train.json", spec=spec, split="train", image_root="images", images=[row])
    (record,) = load_split(tmp_path / "toy" / "train.json", spec, "train")
    for seed in range(3):
        mapper = TrainMapper(cfg, spec, "seg")
        assert torch.equal(mapper(record, seed)["masks"], mapper(records[0], seed)["masks"])
    assert EvalMapper(cfg, spec)(record)["masks"] == records[0]["masks"]
    cv2.imwrite(str(tmp_path / "toy" / "images" / "masks" / "1.png"), np.zeros((3, 3), np.uint8))
    with pytest.raises(FXError, match=r"1.png: the mask is 3 x 3, its image 60 x 40"):
        EvalMapper(cfg, spec)(record)
