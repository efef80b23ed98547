"""Shared by all sections: options, configs, synthetic datasets, and the training step as the trainer runs it."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from benchmarks.cycle import label
from fx_d2.data import TrainMapper, get_dicts, register_datasets, write_split
from fx_d2.data.masks import encode_mask
from fx_d2.data.table import BY_NAME
from fx_d2.engine import FXTrainer, PhaseState, build_cfg
from fx_d2.engine.precision import cpu_has_bfloat16
from fx_d2.modeling import FoundationX
from fx_d2.structures import TASKS, DatasetSpec, FXError

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "FoundationX" / "configs"
CONFIG, QUICK_CONFIG = CONFIGS / "pretrain" / "swin_b_cyclic.yaml", CONFIGS / "smoke" / "synthetic_cpu.yaml"

AS_REFERENCE = ("SOLVER.AMP.ENABLED", "False", "MODEL.LOC.NUM_QUERIES", "900")
"""The reference's settings: float32 and 900 queries."""

RECOMMENDED = "fx_d2, bfloat16, 300 queries"
AS_RECOMMENDED = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "MODEL.LOC.NUM_QUERIES", "300")
"""Recommended settings: bfloat16 autocast and 300 queries."""

WITHOUT_BFLOAT16 = ("SOLVER.AMP.ENABLED", "False", "MODEL.LOC.NUM_QUERIES", "300")
"""Recommended settings for a CPU without bfloat16 instructions."""

BOXES = 3
"""Boxes per synthetic image; 100 denoising pairs are then 198 queries."""

_NOISE = 1.2
"""Standard deviation of the noise in grey values; PNGs then have ChestX-ray14's average size, 0.4 MB."""


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options of every section."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--threads", type=int, default=0, help="torch threads (default %(default)s; 0: torch's default)"
    )
    parser.add_argument("--config-file", default="", help="default: the paper's recipe; with --quick: the demo's")
    parser.add_argument("--size", type=int, default=0, help="image side (default 0: the config's)")
    parser.add_argument("--batch", type=int, default=2, help="images per step (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=0, help="counted repetitions (default 0: the section's default)")
    parser.add_argument("--quick", action="store_true", help="smallest model and one repetition, as a smoke test")
    parser.add_argument(
        "--output", default="", help="also write the report, .md or .json, with figures and traces next to it"
    )
    parser.add_argument(
        "--allocator", choices=["tuned", "default"], default="tuned",
        help="tuned (default): glibc keeps freed memory, for every candidate; default: glibc's defaults",
    )  # fmt: skip
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config options as KEY VALUE pairs; last")


def recommended(device: str) -> tuple[str, tuple[str, ...]]:
    """Name and config options of the recommended settings for a device."""
    if device == "cpu" and not cpu_has_bfloat16():
        return "fx_d2, float32, 300 queries", WITHOUT_BFLOAT16
    return RECOMMENDED, AS_RECOMMENDED


def repetitions(args: argparse.Namespace, usual: int) -> int:
    """Number of repetitions: --repeat, else 1 with --quick, else `usual`."""
    return args.repeat or (1 if args.quick else usual)


def beside(args: argparse.Namespace, name: str) -> Path:
    """Path of an additional file of a section, next to the report."""
    folder = Path(args.output).parent if args.output else Path("output") / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def verdict(value: float, target: float | None, *, at_least: bool = True) -> str:
    """Table cell of a target: its value and whether it is met; empty without a target."""
    if target is None:
        return ""
    met = value >= target if at_least else value <= target
    return f"{'>=' if at_least else '<='} {target:g}: {'met' if met else 'missed'}"


def make_cfg(args: argparse.Namespace, root: Path, opts: Sequence[str] = (), size: int = 0) -> CfgNode:
    """The config of a section on synthetic data, with its datasets registered; no weights are downloaded.

    Args:
        args: with the common options.
        root: from `draw_datasets`; output goes to its folder "run".
        opts: KEY VALUE pairs of the candidate; those of the command line come after them.
        size: image side; 0 = from the command line or the config.

    Raises:
        FXError: a dataset is not in the table of datasets, or a config key does not exist.
    """
    batch = [word for task in TASKS for word in (f"SCHEDULE.BATCH_SIZE.{task.upper()}", str(args.batch))]
    own = ["MODEL.DEVICE", args.device, "SEED", "0", "DATASETS.ROOT", str(root), "OUTPUT_DIR", str(root / "run")]
    own += ["DATALOADER.NUM_WORKERS", "0", "SCHEDULE.ITERS_PER_PASS", "1", *batch]
    if size or args.size:
        own += ["INPUT.SIZE", str([size or args.size] * 2)]
    config = args.config_file or str(QUICK_CONFIG if args.quick else CONFIG)
    cfg = build_cfg(config, [*own, *opts, *args.opts])
    cfg.MODEL.TIMM.KWARGS.pop("pretrained", None)
    cfg.DATASETS.TEST = ()
    strange = [name for name in cfg.DATASETS.TRAIN if name.rpartition("_")[0] not in BY_NAME]
    if strange:
        raise FXError(f"{config}: {strange[0]} is not a split of a dataset in fx_d2's table, which benchmarks need")
    register_datasets(cfg)
    cfg.freeze()
    return cfg


def draw_datasets(root: Path, *, images: int, side: int = 320, names: Iterable[str] = BY_NAME) -> Path:
    """Write synthetic "train" splits of datasets in the table, annotated for all of their tasks; returns `root`.

    All datasets share the images: smooth, with the noise of a radiograph. They have three boxes, and discs as masks.
    """
    folder = root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(images):
        cv2.imwrite(str(folder / f"{number}.png"), noisy_image(rng, side))
    for spec in map(BY_NAME.__getitem__, names):
        rows = [annotated_image(spec, rng, f"{number}.png", side) for number in range(images)]
        write_split(root / spec.name / "train.json", spec=spec, split="train", image_root="../images", images=rows)
    return root


def noisy_image(rng: np.random.Generator, side: int) -> np.ndarray:
    """A smooth random image with the noise of a radiograph, (side, side) uint8."""
    smooth = cv2.resize(rng.uniform(20, 235, (12, 12)), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, _NOISE, smooth.shape), 0, 255).astype(np.uint8)


def annotated_image(spec: DatasetSpec, rng: np.random.Generator, name: str, side: int) -> dict[str, Any]:
    """An image with random ground truth for all tasks of a dataset, in the format of `write_split`."""
    row: dict[str, Any] = {"file_name": name, "width": side, "height": side, "patient_id": name}
    row |= {"labels": None, "boxes": None, "masks": None}
    if spec.cls_classes:
        count = len(spec.cls_classes)
        one = np.eye(count, dtype=int)[rng.integers(count)]
        row["labels"] = (one if spec.cls_kind == "softmax" else rng.integers(0, 2, count)).tolist()
    if spec.loc_classes:
        corners, sizes = rng.uniform(0, 0.6, (BOXES, 2)) * side, rng.uniform(0.1, 0.3, (BOXES, 2)) * side
        classes = rng.choice(spec.loc_classes, BOXES)
        row["boxes"] = [(str(c), [*map(float, (*a, *b))]) for c, a, b in zip(classes, corners, sizes, strict=True)]
    if spec.seg_classes:
        y, x = np.ogrid[:side, :side]
        middles = rng.uniform(0.2, 0.8, (len(spec.seg_classes), 2)) * side
        row["masks"] = [encode_mask((x - a) ** 2 + (y - b) ** 2 < (side / 6) ** 2) for a, b in middles]
    return row


def three_task_dataset(specs: Iterable[DatasetSpec]) -> str:
    """Name of the dataset with all three tasks; among several, the one with the most mask classes.

    Raises:
        FXError: there is none.
    """
    found = [spec for spec in specs if spec.tasks == TASKS]
    if not found:
        raise FXError("no dataset of DATASETS.TRAIN has all three tasks: add one, the benchmark measures its steps")
    return max(found, key=lambda spec: len(spec.seg_classes)).name


def draw_batch(model: FoundationX, size: Sequence[int], count: int, original: int = 0) -> list[dict[str, Any]]:
    """Random images of the dataset with all tasks, in the format of an evaluation loader.

    Args:
        model: with that dataset's heads.
        size: (height, width) of the network input.
        count: number of images.
        original: side of the original images in pixels, the size of the results; 0 = as the input.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = (original or side for side in size)
    rest = {"dataset": three_task_dataset(model.specs.values()), "height": height, "width": width, "file_name": "drawn"}
    images = torch.randint(0, 256, (count, 1, *size), dtype=torch.uint8, generator=generator)
    return [rest | {"image": image, "image_id": number} for number, image in enumerate(images)]


class Ours:
    """Our training step: `FXTrainer.run_step` of a phase, repeated on one batch loaded beforehand.

    Attributes:
        trainer: with the model, the teacher and the optimizer.
        phases: kind of step such as "loc/lock" -> state of the schedule, for the dataset of `three_task_dataset`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """cfg: from `make_cfg`."""
        self.trainer = FXTrainer(cfg)
        self.trainer.storage = EventStorage(0)
        dataset = three_task_dataset(self.trainer.model.specs.values())
        self._places: dict[str, int] = {}
        self.phases: dict[str, PhaseState] = {}
        for iteration in range(self.trainer.schedule.cycle_length):
            state = self.trainer.schedule.at(iteration)
            kind = label(state.phase)
            if state.phase.dataset == dataset and kind not in self.phases:
                self._places[kind], self.phases[kind] = iteration, state

    def samples(self, kind: str) -> list[dict[str, Any]]:
        """Samples for a kind of step from the mapper, for other candidates: the same images, augmented again."""
        cfg, phase = self.trainer.cfg, self.phases[kind].phase
        mapper = TrainMapper(cfg, self.trainer.model.specs[phase.dataset], phase.task)
        records = get_dicts(f"{phase.dataset}_train")
        count = cfg.SCHEDULE.BATCH_SIZE[phase.task.upper()]
        return [mapper(records[number % len(records)], number) for number in range(count)]

    def enter(self, kind: str) -> None:
        """Enter the phase of a kind of step (lock or release), and load a batch for its steps."""
        self.enter_iteration(self._places[kind])

    def enter_iteration(self, iteration: int) -> None:
        """The same for the phase of an iteration."""
        trainer = self.trainer
        where = {"start_iter": iteration, "num_iters": 1, "rank": 0, "world_size": 1, "seed": 0}
        trainer.iter = iteration
        trainer.feed(itertools.repeat(next(iter(trainer.data.loader(trainer.schedule, **where)))))
        trainer.enter_phase(trainer.schedule.at(iteration))

    def step(self) -> None:
        """One step."""
        self.trainer.run_step()

    def end_pass(self) -> None:
        """End of a pass: the teacher is updated."""
        self.trainer.leave_phase()


def drawn_world(images: int, side: int = 320) -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """A temporary folder with `draw_datasets`, and its root; deleted with the first value."""
    folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="fx_d2_benchmark_")
    return folder, draw_datasets(Path(folder.name), images=images, side=side)
