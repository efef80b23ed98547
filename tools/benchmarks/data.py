"""Images per second on one core: decoding and augmenting large grey PNGs and masks, compared with PIL and torchvision.

The baseline is what training code for chest X-rays commonly does for each sample: open with PIL, convert to RGB, crop
and resize, flip, rotate, change brightness and contrast for each view, convert to a float tensor, normalise. Ours does
the same on one uint8 grey channel and leaves normalisation to the model; a third row normalises on the CPU, too. With
masks, the baseline decodes each run-length encoding and transforms it as a separate image.
"""

from __future__ import annotations

import argparse
import random
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
from pycocotools import mask as mask_api
from torchvision import transforms
from torchvision.transforms import InterpolationMode, functional

from benchmarks.timing import ratio_table, take_turns
from benchmarks.world import noisy_image, repetitions
from fx_d2.config import add_fx_config
from fx_d2.data.cache import cache_images
from fx_d2.data.image_io import image_size
from fx_d2.data.mapper import TrainMapper
from fx_d2.data.masks import encode_mask
from fx_d2.structures import DatasetSpec, FXError

HELP = "images per second of loading and augmenting, compared with PIL + torchvision"
MASKS = 13
"""Masks per image, as in ChestX-Det."""
SPEC = DatasetSpec(
    name="benchmark", title="Benchmark", cls_classes=("finding",), seg_classes=tuple(f"mask {i}" for i in range(MASKS))
)
BASELINE = "PIL + torchvision"
CACHE_SIZE = 256
ROTATE = 7.0
LIGHT = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.set_defaults(threads=1)
    parser.add_argument("--images", default="", help="folder of grey PNGs (default: synthetic images)")
    parser.add_argument("--num", type=int, default=8, help="images per repetition (default 8)")
    parser.add_argument("--side", type=int, default=1024, help="side of synthetic images in pixels (default 1024)")


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(args.images or folder)
        paths = sorted(root.glob("*.png"))[: args.num] if args.images else _draw(root, args.num, args.side)
        if not paths:
            raise FXError(f"--images {root}: contains no *.png")
        images = [_image(path) for path in paths]
        cache = Path(folder) / "cache"
        copies = cache_images(images, image_root=root, cache_root=cache, shorter=CACHE_SIZE)
        records, cached = _records(images, root), _records(copies, cache)
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        parts = [f"{len(paths)} grey PNGs of {kilobytes:.0f} kB on average; items are images, seconds CPU seconds"]
        for title, candidates in (
            ("random crop of area 0.08 to 1", _candidates(records, cached, 0.08)),
            ("whole image", _candidates(records, cached, 1.0)),
            (f"whole image with {MASKS} masks", _mask_candidates(records)),
        ):
            times = take_turns(candidates, repetitions(args, 15))
            parts.append(f"{title}, to 224 x 224, two views\n\n{ratio_table(times, BASELINE, len(paths))}")
    return "\n\n".join(parts)


def _candidates(
    records: list[dict[str, Any]], cached: list[dict[str, Any]], crop: float
) -> dict[str, Callable[[int], object]]:
    """Candidates of a table: functions that load every image once."""
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
        BASELINE: lambda _: [baseline(record["file_name"]) for record in records],
        "fx_d2": partial(ours, records),
        "fx_d2, normalised on the CPU": ours_normalised,
        f"fx_d2, cache of {CACHE_SIZE}": partial(ours, cached),
    }


def _mask_candidates(records: list[dict[str, Any]]) -> dict[str, Callable[[int], object]]:
    """Candidates of the table with masks: discs in each image."""
    with_masks = [
        record | {"masks": _discs(record["height"], record["width"]), "ignore_mask": None} for record in records
    ]
    mapper = TrainMapper(_config(1.0), SPEC, "seg")
    light = _light()

    def baseline(record: dict[str, Any]) -> object:
        flip, angle = random.random() < 0.5, random.uniform(-ROTATE, ROTATE)
        with Image.open(record["file_name"]) as image:
            pictures = [image.convert("RGB")]
        pictures += [Image.fromarray(mask) for mask in mask_api.decode(record["masks"]).transpose(2, 0, 1)]
        for number, picture in enumerate(pictures):
            how = InterpolationMode.NEAREST if number else InterpolationMode.BILINEAR
            picture = functional.resize(picture, [224, 224], how)
            picture = functional.hflip(picture) if flip else picture
            pictures[number] = functional.rotate(picture, angle, how)
        masks = torch.from_numpy(np.stack([np.asarray(mask) for mask in pictures[1:]])).float()
        return light(pictures[0]), light(pictures[0]), masks

    return {
        BASELINE: lambda _: [baseline(record) for record in with_masks],
        "fx_d2": lambda repetition: [mapper(record, repetition) for record in with_masks],
    }


def _discs(height: int, width: int) -> list[dict[str, Any]]:
    y, x = np.ogrid[:height, :width]
    middles = np.linspace(0.2, 0.8, MASKS) * width
    return [encode_mask((x - middle) ** 2 + (y - height / 2) ** 2 < (height / 6) ** 2) for middle in middles]


def _config(crop: float) -> CfgNode:
    """The default config with the baseline's augmentation."""
    cfg = get_cfg()
    add_fx_config(cfg)
    ranges = {"ROTATE": ROTATE, "SCALE": 0.0, "SHIFT": 0.0, "BRIGHTNESS": LIGHT, "CONTRAST": LIGHT, "PROB": 1.0}
    for task in ("CLS", "SEG"):
        cfg.INPUT[task].update(ranges | {"CROP_AREA": crop, "FLIP": 0.5})
    return cfg


def _baseline(crop: float) -> Callable[[str], tuple[torch.Tensor, torch.Tensor]]:
    """Function from a path to the two views of its image."""
    first = transforms.RandomResizedCrop(224, scale=(crop, 1)) if crop < 1 else transforms.Resize((224, 224))
    geometry = transforms.Compose([first, transforms.RandomHorizontalFlip(), transforms.RandomRotation(ROTATE)])
    light = _light()

    def sample(path: str) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(path) as image:
            moved = geometry(image.convert("RGB"))
        return light(moved), light(moved)

    return sample


def _light() -> Callable[[Image.Image], torch.Tensor]:
    """Jitter brightness and contrast, then convert to a normalised tensor."""
    jitter, mean, std = transforms.ColorJitter(LIGHT, LIGHT), [0.5056] * 3, [0.252] * 3
    return transforms.Compose([jitter, transforms.ToTensor(), transforms.Normalize(mean, std)])


def _draw(folder: Path, num: int, side: int) -> list[Path]:
    """Write smooth images with the noise of a radiograph."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(num)]
    for path in paths:
        Image.fromarray(noisy_image(rng, side)).save(path)
    return paths


def _image(path: Path) -> dict[str, Any]:
    height, width = image_size(path)
    return {"file_name": path.name, "height": height, "width": width, "labels": [1]}


def _records(images: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Images in the format of the loaders."""
    rest = {"dataset": SPEC.name, "image_id": 0, "intensity": None, "stored_size": None}
    return [rest | image | {"file_name": str(root / image["file_name"])} for image in images]
