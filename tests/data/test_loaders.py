"""The loaders on the toy dataset."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor

from fx_d2.batch import Batch
from fx_d2.data.annotations import load_spec, write_spec, write_split
from fx_d2.data.catalog import register_datasets
from fx_d2.data.loaders import build_test_loader, build_train_data, check_test_split, training_dicts
from fx_d2.structures import DatasetSpec, FXError, Phase


@dataclass(frozen=True)
class _State:
    phase: Phase
    cycle: int
    pass_index: int
    step: int


class _Schedule:
    """One step each of the three tasks."""

    def at(self, iteration: int) -> _State:
        task = ("cls", "loc", "seg")[iteration % 3]
        return _State(Phase("toy", task, ("backbone",)), iteration // 3, iteration % 3, 0)


@pytest.fixture
def registered(cfg: CfgNode, make_dataset: Callable[..., Path]) -> CfgNode:
    """The config with its datasets prepared and registered."""
    make_dataset(splits=("train", "test"))
    register_datasets(cfg)
    return cfg


def _run(cfg: CfgNode, start: int = 0, count: int = 3, rank: int = 0, world: int = 1) -> list[Batch]:
    return list(build_train_data(cfg).loader(_Schedule(), start, rank, world, count, seed=7))


def test_sizes_and_batches(registered: CfgNode) -> None:
    """Only annotated images count; a batch is of one dataset and one task."""
    assert build_train_data(registered).sizes == {("toy", "cls"): 2, ("toy", "loc"): 1, ("toy", "seg"): 1}
    batches = _run(registered)
    assert [batch.one("task") for batch in batches] == ["cls", "loc", "seg"]
    assert {len(batch) for batch in batches} == {4}


def test_workers_and_resume_do_not_change_samples(registered: CfgNode) -> None:
    """Bit-equal images with 0 and 2 workers, and when starting in the middle."""
    plain = _run(registered, count=6)
    registered.DATALOADER.NUM_WORKERS = 2
    for batches, wanted in ((_run(registered, count=6), plain), (_run(registered, start=2, count=2), plain[2:4])):
        for batch, other in zip(batches, wanted, strict=True):
            assert batch.samples == other.samples and batch.counts == other.counts
            torch.testing.assert_close(batch.tensors, other.tensors, rtol=0, atol=0, equal_nan=True)


def test_a_thread_pins_what_workers_hand_over(registered: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a GPU, which is played here: each tensor of a batch is pinned once, and pictures and masks are bytes."""
    plain, pinned = _run(registered), []

    def pin(x: Tensor) -> Tensor:
        assert x.is_shared() and threading.current_thread() is not threading.main_thread()
        pinned.append(x.clone())
        return pinned[-1]

    for name, value in (
        ("is_available", True),
        ("current_accelerator", torch.device("cuda")),
        ("current_device_index", 0),
        ("set_device_index", None),
    ):
        monkeypatch.setattr(torch.accelerator, name, lambda *_, value=value: value)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    registered.DATALOADER.NUM_WORKERS, registered.MODEL.DEVICE = 2, "cuda"
    batches = _run(registered)
    found = [x for batch in batches for x in batch.tensors.values()]
    assert len(found) == len(pinned) and {id(x) for x in found} == {id(x) for x in pinned}  # as workers came
    for batch, other in zip(batches, plain, strict=True):
        assert batch.samples == other.samples
        torch.testing.assert_close(batch.tensors, other.tensors, rtol=0, atol=0, equal_nan=True)
    assert {x.element_size() for x in batches[2].tensors.values()} == {1} and "masks" in batches[2].tensors


def test_workers_share_the_records(registered: CfgNode, images: list[dict[str, Any]], tmp_path: Path) -> None:
    """What goes to a worker does not grow with what the images carry: their records lie in shared memory."""

    def pickled() -> int:
        return len(
            ForkingPickler.dumps(build_train_data(registered).loader(_Schedule(), 0, 0, 1, 3, seed=7).loader.dataset)
        )

    before = pickled()
    spec = load_spec(tmp_path / "toy")
    heavy = [image | {"file_name": f"train_{image['file_name']}", "meta": {"note": "x" * 10**6}} for image in images]
    write_split(tmp_path / "toy" / "train.json", spec=spec, split="train", image_root="images", images=heavy)
    assert abs(pickled() - before) < 1000


def test_ranks_split_the_batch(registered: CfgNode) -> None:
    """Two ranks hold the halves of one process's batch."""
    whole, halves = _run(registered)[0], [_run(registered, rank=r, world=2)[0] for r in range(2)]
    assert torch.equal(torch.cat([half.tensors["image"] for half in halves]), whole.tensors["image"])


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_one_line(registered: CfgNode, workers: int) -> None:
    """A worker's error arrives without its traceback."""
    registered.DATALOADER.NUM_WORKERS = workers
    data, loader = build_train_data(registered), build_test_loader(registered, "toy_test")
    for path in (Path(registered.DATASETS.ROOT) / "toy" / "images").iterdir():
        path.write_bytes(b"")
    for batches in (data.loader(_Schedule(), 0, 0, 1, 1, seed=0), loader):
        with pytest.raises(FXError, match=r"\.png: empty file$"):
            list(batches)


@pytest.mark.parametrize("name", ["train_a.png", "train_b.png"])
def test_the_first_and_the_last_image_are_read_before_training(registered: CfgNode, name: str) -> None:
    """A wrong folder or format is found before the first step."""
    data = build_train_data(registered)
    data.check_readable()
    (Path(registered.DATASETS.ROOT) / "toy" / "images" / name).write_bytes(b"")
    with pytest.raises(FXError, match=f"{name}: empty file"):
        data.check_readable()


def test_the_limit_counts_what_is_left(registered: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATASETS.LIMIT takes the first images after DATASETS.EXCLUDE."""
    registered.DATASETS.EXCLUDE, registered.DATASETS.LIMIT = "leaks.json", 1
    for excluded, left in (({1}, 2), ({2}, 1), (set(), 1)):
        answers = {("leaks.json", "toy_train"): excluded}
        monkeypatch.setattr("fx_d2.data.loaders.excluded_images", lambda *args, known=answers: known[args])
        assert [record["image_id"] for record in training_dicts(registered, "toy_train")] == [left]


def test_test_loader(registered: CfgNode) -> None:
    """All images in order, batched; the limit holds."""
    loader = build_test_loader(registered, "toy_test")
    assert len(loader) == 1 and [s["image_id"] for batch in loader for s in batch] == [1, 2]
    registered.DATASETS.LIMIT = 1
    assert [len(batch) for batch in build_test_loader(registered, "toy_test")] == [1]


def test_what_an_evaluation_needs_is_read_before(registered: CfgNode) -> None:
    """All images must be there, the first must be readable, and the limit holds here, too."""
    folder = Path(registered.DATASETS.ROOT) / "toy" / "images"
    check_test_split(registered, "toy_test")
    (folder / "test_b.png").unlink()
    for check in (check_test_split, build_test_loader):
        with pytest.raises(FXError, match=r"test_b.png: image file not found \(1 of 2"):
            check(registered, "toy_test")
    registered.DATASETS.LIMIT = 1
    check_test_split(registered, "toy_test")
    (folder / "test_a.png").write_bytes(b"")
    with pytest.raises(FXError, match="test_a.png: empty file"):
        check_test_split(registered, "toy_test")


def test_no_annotated_image(registered: CfgNode, spec: DatasetSpec, images: list[dict[str, Any]]) -> None:
    """A split without images for a trained task is named; a task that is not trained does not matter."""
    folder = Path(registered.DATASETS.ROOT) / "toy"
    poor = [image | {"file_name": f"train_{image['file_name']}", "masks": None} for image in images]
    write_split(folder / "train.json", spec=spec, split="train", image_root="images", images=poor)
    with pytest.raises(FXError, match="toy_train: none of its 2 images is annotated for 'seg'"):
        build_train_data(registered)
    row = {"task": "cls", "share": 1.0, "train": ["backbone", "cls_heads"]}
    elsewhere = {"task": "seg", "share": 1.0, "train": ["seg_heads"], "datasets": ["other"]}
    for strategy in ([row], [row, elsewhere]):
        registered.SCHEDULE.STRATEGY = strategy
        assert build_train_data(registered).sizes == {("toy", "cls"): 2}
    registered.DATASETS.FEW_SHOT.IMAGES = 2
    assert len(training_dicts(registered, "toy_train")) == 2


def test_labels_that_never_differ_are_said(
    registered: CfgNode, spec: DatasetSpec, images: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """A table that writes 1 or nothing has no negatives; with blanks as zeros it has."""
    folder = Path(registered.DATASETS.ROOT) / "toy"
    rows = [
        images[0] | {"file_name": name, "labels": labels}
        for name, labels in (("train_a.png", [1, None, 0]), ("train_b.png", [0, 1, None]), ("test_a.png", None))
    ]
    write_split(folder / "train.json", spec=spec, split="train", image_root="images", images=rows)
    build_train_data(registered)
    (line,) = [record.getMessage() for record in caplog.records if "one known label value" in record.getMessage()]
    assert line.startswith("toy_train: ") and "in 3 images: right_sign, other (blank labels count as unknown" in line
    caplog.clear()
    write_spec(folder, replace(spec, blank="zeros", uncertain="zeros"))
    register_datasets(registered)
    build_train_data(registered)
    (line,) = [record.getMessage() for record in caplog.records if "one known label value" in record.getMessage()]
    assert "images: other (blank labels count as 0" in line
    caplog.clear()
    rows[1]["labels"] = [0, 1, 1]
    write_split(folder / "train.json", spec=spec, split="train", image_root="images", images=rows)
    build_train_data(registered)
    assert "one known label value" not in caplog.text


@pytest.mark.parametrize("split", ["val", "test"])
def test_patient_in_two_splits(
    registered: CfgNode, spec: DatasetSpec, images: list[dict[str, Any]], split: str
) -> None:
    """A leak between the split trained on and one that is or will be evaluated is refused."""
    names = [f"test_{image['file_name']}" for image in images]
    leak = [image | {"file_name": name, "patient_id": "train_p0"} for image, name in zip(images, names, strict=True)]
    folder = Path(registered.DATASETS.ROOT) / "toy"
    write_split(folder / f"{split}.json", spec=spec, split=split, image_root="images", images=leak)
    with pytest.raises(FXError, match=f"patient 'train_p0' is in toy_train and in toy_{split}"):
        build_train_data(registered)


def test_patients_of_another_dataset(
    registered: CfgNode, make_dataset: Callable[..., Path], spec: DatasetSpec, images: list[dict[str, Any]]
) -> None:
    """Two datasets may call different patients alike, such as "1"."""
    make_dataset(row=replace(spec, name="other"))
    registered.DATASETS.TEST = ("toy_test", "other_train")
    register_datasets(registered)
    build_train_data(registered)


def test_faulty_configs(registered: CfgNode) -> None:
    """A row named twice, a batch that two processes cannot share, and one of nothing."""
    registered.SCHEDULE.BATCH_SIZE.CLS = 3
    with pytest.raises(FXError, match="BATCH_SIZE.CLS is 3"):
        build_train_data(registered).loader(_Schedule(), 0, 0, 2, 1, seed=0)
    registered.SCHEDULE.BATCH_SIZE.CLS = 0
    with pytest.raises(FXError, match="BATCH_SIZE.CLS is 0"):
        build_train_data(registered)
    registered.DATASETS.TRAIN = ("toy_train", "toy_test")
    with pytest.raises(FXError, match=r"repeated: \['toy'\]"):
        build_train_data(registered)
