"""A row with all three tasks, a model small enough for a test, and random samples as the mappers give them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from fx_d2.config import add_fx_config
from fx_d2.engine.checkpoint import FXCheckpointer, class_lists
from fx_d2.modeling import EMATeacher
from fx_d2.structures import DatasetSpec

TINY = DatasetSpec(
    name="tiny",
    title="Tiny",
    cls_classes=("mass", "left lung", "right lung"),
    loc_classes=("left lung", "right lung"),
    seg_classes=("left lung", "heart", "right lung"),
    flip_pairs=(("left lung", "right lung"),),
)
TINY_SOFTMAX = DatasetSpec(name="tiny_softmax", title="Tiny softmax", cls_classes=("a", "b", "c"), cls_kind="softmax")
SIZE = 64

MakeBatch = Callable[..., list[dict[str, Any]]]

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same tests on every machine; nothing has asked for a GPU so far


@pytest.fixture
def tiny_spec() -> Iterator[DatasetSpec]:
    """The row "tiny", registered (and "tiny_softmax" beside it)."""
    for spec in (TINY, TINY_SOFTMAX):
        MetadataCatalog.pop(f"{spec.name}_train", None)
        MetadataCatalog.get(f"{spec.name}_train").set(spec=spec)
    yield TINY
    for spec in (TINY, TINY_SOFTMAX):
        MetadataCatalog.pop(f"{spec.name}_train", None)


@pytest.fixture
def tiny_cfg(tiny_spec: DatasetSpec) -> CfgNode:
    """A config whose model trains both rows on 64 x 64 pixels on a CPU in milliseconds; not frozen."""
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.DATASETS.TRAIN = (f"{tiny_spec.name}_train", f"{TINY_SOFTMAX.name}_train")
    cfg.INPUT.SIZE = [SIZE, SIZE]
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TIMM.NAME = "swin_tiny_patch4_window7_224"
    cfg.MODEL.TIMM.KWARGS = CfgNode(
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}, new_allowed=True
    )
    small = {"HIDDEN_DIM": 64, "NUM_HEADS": 2, "NUM_POINTS": 2, "FFN_DIM": 32, "ENC_LAYERS": 1, "DEC_LAYERS": 3}
    cfg.MODEL.LOC.update(small | {"NUM_QUERIES": 10, "DN_NUMBER": 6, "NUM_SELECT": 8})
    cfg.MODEL.SEG.update({"DIM": 16, "POOL_BINS": [1, 2]})
    return cfg


@pytest.fixture
def tiny_checkpoint(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    """A checkpoint of the tiny model as a run writes it, with random student and another random teacher."""
    torch.manual_seed(0)
    student, teacher = build_model(tiny_cfg), EMATeacher(build_model(tiny_cfg))
    extra = {"classes": class_lists(student), "config": tiny_cfg.dump()}
    FXCheckpointer(student, str(tmp_path), teacher=teacher).save("run", **extra)
    return tmp_path / "run.pth"


@pytest.fixture
def make_batch() -> MakeBatch:
    """Function (task, boxes=(2, 0), size=(64, 64), dataset="tiny") -> random training samples, one per entry of boxes.

    `boxes` are the numbers of boxes; the samples also hold "teacher_image", a different picture.
    """

    def make(
        task: str, boxes: tuple[int, ...] = (2, 0), size: tuple[int, int] = (SIZE, SIZE), dataset: str = TINY.name
    ) -> list[dict[str, Any]]:
        return [_sample(task, count, size, dataset) | {"image_id": i} for i, count in enumerate(boxes)]

    return make


@pytest.fixture
def film_folder(tmp_path: Path) -> Path:
    """A folder of films as people have them: a.png, b.jpg, c.dcm (stored inverted), sub/a.png, sub/IM1 (DICOM)."""
    folder = tmp_path / "films"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(("a.png", "b.jpg", "c.dcm", "sub/a.png", "sub/IM1")):
        pixels = cv2.resize(rng.integers(0, 256, (9, 7), dtype=np.uint8), (70 + 10 * i, 90))
        if name.endswith(("png", "jpg")):
            cv2.imwrite(str(folder / name), pixels)
        else:
            _write_dicom(folder / name, pixels)
    return folder


def _write_dicom(path: Path, pixels: np.ndarray) -> None:
    """8 bits, MONOCHROME1: stored inverted, without a window."""
    film = Dataset()
    film.SOPClassUID, film.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    film.Rows, film.Columns = pixels.shape
    film.SamplesPerPixel, film.PixelRepresentation, film.PhotometricInterpretation = 1, 0, "MONOCHROME1"
    film.BitsAllocated, film.BitsStored, film.HighBit = 8, 8, 7
    film.PixelData, film["PixelData"].VR = (255 - pixels).tobytes(), "OB"
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.save_as(path, enforce_file_format=True)


def _sample(task: str, count: int, size: tuple[int, int], dataset: str) -> dict[str, Any]:
    height, width = size
    sample = {"dataset": dataset, "task": task, "file_name": "x.png", "height": 100, "width": 80}
    for view in ("image", "teacher_image"):
        sample[view] = torch.randint(0, 256, (1, *size), dtype=torch.uint8)
    if task == "cls":
        return sample | {"labels": torch.tensor([1.0, 0.0, float("nan")])}
    if task == "loc":
        corner, sides = torch.rand(count, 2) * 0.5, torch.rand(count, 2) * 0.3 + 0.1
        corners = torch.cat((corner, corner + sides), dim=1) * torch.tensor([width, height, width, height])
        truth = Instances(size, gt_boxes=Boxes(corners), gt_classes=torch.randint(0, len(TINY.loc_classes), (count,)))
        return sample | {"instances": truth}
    masks = torch.rand(len(TINY.seg_classes), *size) > 0.5
    known = torch.tensor([True, True, False])
    return sample | {"masks": masks, "mask_known": known, "mask_valid": torch.rand(size) > 0.1}
