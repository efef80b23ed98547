"""Images a second on one core: decoding and augmenting large grey PNGs, beside PIL and torchvision.

The baseline is what training code for chest X-rays commonly does for each sample: open with PIL, convert to RGB, crop
and resize, flip, rotate, change brightness and contrast for each view, make a float tensor, normalise. Ours does the
same on one grey channel in bytes and leaves normalising to the model; a third row normalises on the CPU as well.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from PIL import Image
from torchvision import transforms

from benchmarks.timing import ratio_table, take_turns
from fx_d2.config import add_fx_config
from fx_d2.data.cache import cache_images
from fx_d2.data.image_io import image_size
from fx_d2.data.mapper import TrainMapper
from fx_d2.structures import DatasetSpec, FXError

HELP = "images a second of reading and augmenting, beside PIL + torchvision"
SPEC = DatasetSpec(name="benchmark", title="Benchmark", cls_classes=("finding",), loc_classes=("finding",))
CACHE_SIZE = 256
ROTATE = 7.0
LIGHT = 0.2
NOISE = 1.2
"""Standard deviation in grey values that gives files of ChestX-ray14's average size, 0.4 MB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-command's options."""
    parser.add_argument("--images", default="", help="folder of grey PNGs (default: drawn)")
    parser.add_argument("--num", type=int, default=8, help="images a repetition (default 8)")
    parser.add_argument("--side", type=int, default=1024, help="side of drawn images in pixels (default 1024)")
    parser.add_argument("--repetitions", type=int, default=15)


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(args.images or folder)
        paths = sorted(root.glob("*.png"))[: args.num] if args.images else _draw(root, args.num, args.side)
        if not paths:
            raise FXError(f"--images {root}: no *.png there")
        images = [_image(path) for path in paths]
        cache = Path(folder) / "cache"
        copies = cache_images(images, image_root=root, cache_root=cache, shorter=CACHE_SIZE)
        records, cached = _records(images, root), _records(copies, cache)
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        parts = [f"{len(paths)} grey PNGs of {kilobytes:.0f} kB on average; items are images, seconds CPU seconds"]
        for title, crop in (("random crop of area 0.08 to 1", 0.08), ("whole image", 1.0)):
            times = take_turns(_candidates(records, cached, crop), args.repetitions)
            parts.append(f"{title}, to 224 x 224, two views\n{ratio_table(times, 'PIL + torchvision', len(paths))}")
    return "\n\n".join(parts)


def _candidates(
    records: list[dict[str, Any]], cached: list[dict[str, Any]], crop: float
) -> dict[str, Callable[[int], object]]:
    """The rows of a table: functions that prepare every image once."""
    cfg = _config(crop)
    mapper = TrainMapper(cfg, SPEC, "cls")
    mean, std = (torch.tensor(value)[:, None, None] for value in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))

    def ours(images: list[dict[str, Any]], repetition: int) -> None:
        for number, record in enumerate(images):
            mapper(record, repetition * len(images) + number)

    def ours_normalised(repetition: int) -> None:
        for number, record in enumerate(records):
            sample = mapper(record, repetition * len(records) + number)
            for view in ("image", "teacher_image"):
                ((sample[view] - mean) / std).expand(3, -1, -1).contiguous()

    baseline = _baseline(crop)
    return {
        "PIL + torchvision": lambda _: [baseline(record["file_name"]) for record in records],
        "fx_d2": partial(ours, records),
        "fx_d2, normalised on the CPU": ours_normalised,
        f"fx_d2, cache of {CACHE_SIZE}": partial(ours, cached),
    }


def _config(crop: float) -> CfgNode:
    """The default config with the baseline's augmentation."""
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.INPUT.CLS.update({"CROP_AREA": crop, "ROTATE": ROTATE, "BRIGHTNESS": LIGHT, "CONTRAST": LIGHT, "FLIP": 0.5})
    return cfg


def _baseline(crop: float) -> Callable[[str], tuple[torch.Tensor, torch.Tensor]]:
    """Function of a path: the two views of its image."""
    first = transforms.RandomResizedCrop(224, scale=(crop, 1)) if crop < 1 else transforms.Resize((224, 224))
    geometry = transforms.Compose([first, transforms.RandomHorizontalFlip(), transforms.RandomRotation(ROTATE)])
    light = transforms.Compose(
        [
            transforms.ColorJitter(LIGHT, LIGHT),
            transforms.ToTensor(),
            transforms.Normalize([0.5056] * 3, [0.252] * 3),
        ]
    )

    def sample(path: str) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(path) as image:
            moved = geometry(image.convert("RGB"))
        return light(moved), light(moved)

    return sample


def _draw(folder: Path, num: int, side: int) -> list[Path]:
    """Write smooth pictures with a film's noise."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(num)]
    for path in paths:
        smooth = cv2.resize(rng.uniform(20, 235, (12, 12)), (side, side), interpolation=cv2.INTER_CUBIC)
        noisy = smooth + rng.normal(0, NOISE, smooth.shape)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path)
    return paths


def _image(path: Path) -> dict[str, Any]:
    height, width = image_size(path)
    return {"file_name": path.name, "height": height, "width": width, "labels": [1]}


def _records(images: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Images as the loaders keep them."""
    rest = {"dataset": SPEC.name, "image_id": 0, "intensity": None, "stored_size": None}
    return [rest | image | {"file_name": str(root / image["file_name"])} for image in images]
