"""A batch as few tensors: what it holds, and how it travels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.utils.data import DataLoader

from fx_d2.batch import Batch

MakeBatch = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_pictures_and_targets_are_stacked(make_batch: MakeBatch, task: str) -> None:
    samples = make_batch(task, boxes=(2, 0, 1))
    batch = Batch.collate(samples)
    assert len(batch) == 3 and batch.sizes == [(64, 64)] * 3 and "padding" not in batch.tensors
    keys = {"cls": ["labels"], "loc": [], "seg": ["masks", "mask_known", "mask_valid"]}[task]
    for key in ("image", "teacher_image", *keys):
        want = torch.stack([x[key] for x in samples])
        torch.testing.assert_close(batch.tensors[key], want, rtol=0, atol=0, equal_nan=True)
    assert set(batch.tensors) == {"image", "teacher_image", *keys} | ({"boxes", "classes"} if task == "loc" else set())
    assert batch.counts == ((2, 0, 1) if task == "loc" else ())
    assert [x["image_id"] for x in batch.samples] == [0, 1, 2] and batch.samples[0]["file_name"] == "x.png"
    assert not any(isinstance(v, Tensor | Instances) for x in batch.samples for v in x.values())


def test_boxes_are_relative_to_each_picture() -> None:
    boxes = (
        ((100, 200), [[20.0, 10.0, 60.0, 90.0]], [3]),
        ((50, 50), [], []),
        ((50, 50), [[0.0, 0.0, 50.0, 50.0], [25.0, 25.0, 50.0, 30.0]], [1, 2]),
    )
    samples = [
        {
            "task": "loc",
            "image": torch.zeros(1, *size, dtype=torch.uint8),
            "instances": Instances(
                size,
                gt_boxes=Boxes(torch.tensor(rows).view(-1, 4)),
                gt_classes=torch.tensor(classes, dtype=torch.int64),
            ),
        }
        for size, rows, classes in boxes
    ]
    batch = Batch.collate(samples)
    assert batch.counts == (1, 0, 2) and batch.tensors["classes"].tolist() == [3, 1, 2]
    want = torch.tensor([[0.2, 0.5, 0.2, 0.8], [0.5, 0.5, 1, 1], [0.75, 0.55, 0.5, 0.1]])
    assert torch.allclose(batch.tensors["boxes"], want)
    alone = Batch.collate(samples[1:2])
    assert alone.counts == (0,) and alone.tensors["boxes"].shape == (0, 4) and alone.tensors["classes"].shape == (0,)


def test_pictures_of_several_sizes_are_padded_right_and_below() -> None:
    images = [torch.rand(1, 4, 3) + 1, torch.rand(1, 2, 5) + 1]
    batch = Batch.collate([{"image": x} for x in images])
    canvas, padding = batch.tensors["image"], batch.tensors["padding"]
    assert canvas.shape == (2, 1, 4, 5) and padding.shape == (2, 4, 5) and batch.sizes == [(4, 3), (2, 5)]
    assert torch.equal(canvas[0, :, :4, :3], images[0]) and torch.equal(canvas[1, :, :2, :5], images[1])
    assert torch.equal(padding, canvas[:, 0] == 0) and padding.sum().item() == 4 * 2 + 2 * 5


def test_evaluation_samples_keep_their_annotation() -> None:
    sample = {"image": torch.zeros(1, 4, 4), "masks": [None], "annotations": [{"bbox": [0, 0, 1, 1]}], "labels": [1.0]}
    batch = Batch.collate([sample])
    assert set(batch.tensors) == {"image"} and batch.samples == [{k: v for k, v in sample.items() if k != "image"}]


def test_a_word_that_differs(make_batch: MakeBatch) -> None:
    first, second = make_batch("cls")
    with pytest.raises(ValueError, match=r"a batch holds one task, not \['cls', 'loc'\]"):
        Batch.collate([first, second | {"task": "loc"}])
    with pytest.raises(ValueError, match=r"a batch holds one dataset, not \['other', 'tiny'\]"):
        Batch.collate([first, second | {"dataset": "other"}]).one("dataset")


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_a_part_is_the_batch_of_its_samples(make_batch: MakeBatch, task: str) -> None:
    samples = make_batch(task, (2, 0, 3, 1))
    batch = Batch.collate(samples)
    for start, stop in ((0, 4), (0, 1), (1, 3), (2, 4)):
        part, want = batch.part(start, stop), Batch.collate(samples[start:stop])
        assert (part.samples, part.sizes, part.counts) == (want.samples, want.sizes, want.counts)
        for key, value in want.tensors.items():
            torch.testing.assert_close(part.tensors[key], value, rtol=0, atol=0, equal_nan=True)


def test_it_moves_at_once(make_batch: MakeBatch) -> None:
    batch = Batch.collate(make_batch("loc"))
    there = batch.to(torch.device("meta"))
    assert all(x.is_meta for x in there.tensors.values()) and there.samples is batch.samples
    same = batch.to(torch.device("cpu"))
    assert all(same.tensors[key] is x for key, x in batch.tensors.items())


def test_a_loader_pins_it(make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader with pinned memory hands each batch to this function of torch's, which asks the batch."""
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(Tensor, "pin_memory", lambda x, *device: x + 0)
    batch = Batch.collate(make_batch("loc"))
    pinned = pin_memory(batch)
    assert isinstance(pinned, Batch) and pinned.samples is batch.samples
    assert all(torch.equal(pinned.tensors[k], x) and pinned.tensors[k] is not x for k, x in batch.tensors.items())


def test_a_worker_hands_over_one_block_a_tensor(make_batch: MakeBatch) -> None:
    samples = make_batch("seg", boxes=(0,) * 4)
    (batch,) = DataLoader(samples, batch_size=4, num_workers=1, collate_fn=Batch.collate)
    assert len(batch.tensors) == 5 and all(x.is_shared() for x in batch.tensors.values())
    want = Batch.collate(samples)
    assert batch.samples == want.samples and all(torch.equal(x, want.tensors[k]) for k, x in batch.tensors.items())
