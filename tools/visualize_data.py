#!/usr/bin/env python
"""Draw contact sheets of samples with labels, boxes and masks; training samples as the model gets them.

tools/visualize_data.py --config-file X --output DIR                      all training splits, all tasks
tools/visualize_data.py --config-file X --output DIR --dataset jsrt_test  one split; val and test as annotated
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from pycocotools import mask as mask_api

from fx_d2.data import TrainMapper, get_dicts, read_full_size
from fx_d2.data.catalog import split_name
from fx_d2.data.loaders import training_dicts
from fx_d2.data.masks import image_masks
from fx_d2.structures import TASKS, DatasetSpec, FXError, spec_of
from fx_d2.visualization import Cell, Findings, draw_sheet, training_findings, truth_findings

WITH_FINDINGS = 0.75
"""Fraction of a sheet reserved for images with positive findings, if there are enough."""

Records = list[dict[str, Any]]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config file")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the PNG files")
    parser.add_argument("--dataset", action="append", help="split in the config (default: all of DATASETS.TRAIN)")
    parser.add_argument("--task", choices=TASKS, action="append", help="only this task (default: all of the dataset)")
    parser.add_argument("--num", type=int, default=12, help="samples per sheet (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed for sampling and augmentation (default 0)")
    parser.add_argument("--original", action="store_true", help="draw training images without augmentation")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys as KEY VALUE pairs")
    return parser.parse_args(argv)


def draw_sheets(args: argparse.Namespace) -> list[Path]:
    """Draw a sheet for each split and task; returns the files written. Raises FXError for invalid input."""
    from fx_d2.engine.setup import setup_cfg

    if args.num < 1:
        raise FXError(f"--num {args.num}: must be at least 1")
    cfg = setup_cfg(argparse.Namespace(config_file=args.config_file, opts=args.opts))
    names, known = args.dataset or list(cfg.DATASETS.TRAIN), {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    for name in names:
        if name not in known:
            raise FXError(f"--dataset {name}: not a split in the config {sorted(known)}; add it to DATASETS.TEST")
    args.output.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names:
        augmented = split_name(name)[1] == "train" and not args.original
        dicts = training_dicts(cfg, name) if augmented else get_dicts(name, cfg.DATASETS.LIMIT)
        spec = spec_of(name)
        for task in [task for task in spec.tasks if not args.task or task in args.task]:
            records = _choose([record for record in dicts if record["annotated"][task]], task, args)
            if not records:
                continue
            cells = _training_cells(cfg, spec, task, records, args.seed) if augmented else _cells(records, task)
            view = "as trained on" if augmented else "as annotated"
            path = args.output / f"{name}_{task}.png"
            title = f"{spec.title}   {name}   {task}   {view}   research use only"
            Image.fromarray(draw_sheet(cells, spec, title=title)).save(path)
            written.append(path)
    if not written:
        raise FXError(f"no image of {', '.join(names)} is annotated for {', '.join(args.task or TASKS)}")
    return written


def _choose(records: Records, task: str, args: argparse.Namespace) -> Records:
    """A random sample of the records, a fraction `WITH_FINDINGS` of them with positive findings."""
    order = np.random.default_rng(args.seed).permutation(len(records))
    found = (i for i in order if _has_findings(records[i], task))
    first = list(itertools.islice(found, max(1, round(WITH_FINDINGS * args.num))))
    rest = [i for i in order if i not in first]
    return [records[i] for i in sorted([*first, *rest[: args.num - len(first)]])]


def _has_findings(record: dict[str, Any], task: str) -> bool:
    if task == "cls":
        return any(value == 1 for value in record["labels"])
    if task == "loc":
        return bool(record["annotations"])
    return any(mask is not None and mask_api.area(mask) > 0 for mask in image_masks(record) or ())


def _training_cells(cfg: CfgNode, spec: DatasetSpec, task: str, records: Records, seed: int) -> list[Cell]:
    """The output of `TrainMapper` for the records."""
    mapper = TrainMapper(cfg, spec, task)
    cells = []
    for i, record in enumerate(records):
        sample = mapper(record, seed + i)
        image = np.clip(np.rint(sample["image"][0].numpy()), 0, 255).astype(np.uint8)
        cells.append(Cell(image, training_findings(sample), Path(record["file_name"]).name))
    return cells


def _cells(records: Records, task: str) -> list[Cell]:
    """The records' images with their annotation of one task."""
    cells = []
    for record in records:
        truth = truth_findings(record)
        kept = {
            "cls": Findings(labels=truth.labels),
            "loc": Findings(boxes=truth.boxes, classes=truth.classes),
            "seg": Findings(masks=truth.masks),
        }[task]
        cells.append(Cell(read_full_size(record), kept, Path(record["file_name"]).name))
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after a one-line error about invalid input on stderr."""
    args = parse_args(argv)
    try:
        written = draw_sheets(args)
    except FXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    print("\n".join(str(path) for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
