#!/usr/bin/env python
"""Draw ground truth next to predictions for some images of a split, from a predictions file or from a checkpoint.

tools/visualize_predictions.py --config-file X --dataset jsrt_test --output DIR \
    --predictions <OUTPUT_DIR>/inference/predictions_student.json
tools/visualize_predictions.py --config-file X --dataset jsrt_test --output DIR MODEL.WEIGHTS model_final.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from fx_d2.data import get_dicts, read_full_size
from fx_d2.data.splits import image_key
from fx_d2.evaluation import prediction_record, read_predictions
from fx_d2.structures import FXError, spec_of
from fx_d2.visualization import draw_comparison, predicted_findings, truth_findings

Records = dict[int, dict[str, Any]]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description="Draw ground truth next to predictions for some images of a split.")
    parser.add_argument("--config-file", required=True, help="config file of the run")
    parser.add_argument("--dataset", required=True, help="registered split of the config, such as jsrt_test")
    parser.add_argument("--output", required=True, help="output folder for the PNG files")
    parser.add_argument("--predictions", help="predictions_<which>.json of an evaluation (default: run MODEL.WEIGHTS)")
    parser.add_argument("--which", choices=("student", "teacher"), help="model (default: the file's, else student)")
    parser.add_argument("--num", type=int, default=8, help="number of images, evenly spaced over the split (default 8)")
    parser.add_argument("--score-thresh", type=float, default=0.3, help="minimum score of drawn boxes (default 0.3)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys as KEY VALUE pairs")
    return parser.parse_args(argv)


def draw_split(args: argparse.Namespace) -> list[Path]:
    """Draw the requested images; returns the files written. Raises FXError for invalid input."""
    cfg = _setup(args)
    dicts = _dicts(cfg, args.dataset)
    spec = spec_of(args.dataset)
    if args.predictions:
        which, records = read_predictions(args.predictions, args.dataset, args.score_thresh)
        if args.which not in (None, which):
            raise FXError(f"{args.predictions} has predictions of the {which}, but --which is {args.which}")
        chosen = _spread([d for d in dicts if d["image_id"] in records], args.num)
        _check_same_images(chosen, records, args)
    else:
        which = args.which or "student"
        chosen = _spread(dicts, args.num)
        records = _predict(cfg, chosen, which, args)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for sample in chosen:
        picture = draw_comparison(
            read_full_size(sample),
            spec,
            truth_findings(sample),
            predicted_findings(records[sample["image_id"]], args.score_thresh),
            which=which,
            caption=f"{args.dataset}   {Path(sample['file_name']).name}   boxes with score >= {args.score_thresh:g}",
        )
        path = folder / f"{sample['image_id']:06d}_{image_key(Path(sample['file_name']).name)}_{which}.png"
        Image.fromarray(picture).save(path)
        written.append(path)
    return written


def _setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config: drawing a predictions file needs no GPU, running a checkpoint only the requested model."""
    from fx_d2.engine.setup import setup_cfg

    extra = ["MODEL.DEVICE", "cpu"] if args.predictions else ["TEST.MODELS", [args.which or "student"]]
    return setup_cfg(argparse.Namespace(config_file=args.config_file, opts=[*args.opts, *extra]))


def _dicts(cfg: CfgNode, name: str) -> list[dict[str, Any]]:
    try:
        spec_of(name)
    except FXError:
        known = sorted({*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST})
        raise FXError(f"--dataset {name}: not a split of the config ({known}); add it to DATASETS.TEST") from None
    return get_dicts(name, cfg.DATASETS.LIMIT)


def _spread(dicts: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """`number` images, or all if there are fewer, evenly spaced over the list."""
    if number < 1:
        raise FXError(f"--num {number}: must be at least 1")
    if not dicts:
        raise FXError("no image of this split to draw: if the predictions file has none, evaluate again")
    indices = np.linspace(0, len(dicts) - 1, min(number, len(dicts))).round().astype(int)
    return [dicts[i] for i in indices]


def _check_same_images(chosen: list[dict[str, Any]], records: Records, args: argparse.Namespace) -> None:
    """Raise FXError if an image id of the file belongs to another image in the dataset."""
    for sample in chosen:
        stored = Path(records[sample["image_id"]]["file_name"]).name
        if stored != Path(sample["file_name"]).name:
            raise FXError(
                f"{args.predictions}: image {sample['image_id']} of {args.dataset} is {stored} in the file and "
                f"{Path(sample['file_name']).name} in the dataset, which was prepared again since: evaluate again"
            )


def _predict(cfg: CfgNode, dicts: list[dict[str, Any]], which: str, args: argparse.Namespace) -> Records:
    """Records of the checkpoint's predictions on the given images, by image id."""
    import torch

    from fx_d2.data import EvalMapper
    from fx_d2.engine.checkpoint import load_models

    model = load_models(cfg)[which]
    mapper = EvalMapper(cfg, spec_of(args.dataset))
    records = {}
    for start in range(0, len(dicts), cfg.TEST.BATCH_SIZE):
        batch = [mapper(record) for record in dicts[start : start + cfg.TEST.BATCH_SIZE]]
        with torch.no_grad():
            outputs = model(batch)
        for sample, output in zip(batch, outputs, strict=True):
            records[sample["image_id"]] = prediction_record(sample, output, args.score_thresh)
    return records


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after a one-line error on stderr for invalid input."""
    args = parse_args(argv)
    try:
        written = draw_split(args)
    except (FXError, OSError) as error:  # the latter names what cannot be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {len(written)} images to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
