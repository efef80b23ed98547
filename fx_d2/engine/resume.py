"""Whether a checkpoint and a command belong to the same run: nothing but the end of a run may change on the way."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from typing import Any

import detectron2
import timm
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

import fx_d2
from fx_d2.data.loaders import training_dicts
from fx_d2.data.overlap import annotation_digest, excluded_images
from fx_d2.layers.deformable_attention import sampler_identity
from fx_d2.structures import FXError, spec_of

logger = logging.getLogger(__name__)

FREE = (
    "OUTPUT_DIR",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.ROOT",
    "DATASETS.EXCLUDE",
    "DATASETS.TEST",
    "TEST.",
    "SOLVER.CHECKPOINT",
    "MODEL.WEIGHTS",
    "MODEL.TIMM.KWARGS.pretrained",
    "VIS_PERIOD",
)
"""Beginnings of keys that may change: they have no part in the weights, or only in the first ones."""

INEXACT = (
    "SCHEDULE.CYCLES",
    "MODEL.DEVICE",
    "MODEL.TIMM.GRAD_CHECKPOINTING",
    "MODEL.LOC.GRAD_CHECKPOINTING",
    "MODEL.LOC.SAMPLER",
    "MODEL.COMPILE",
    "SOLVER.MICRO_BATCH.CLS",
    "SOLVER.MICRO_BATCH.LOC",
    "SOLVER.MICRO_BATCH.SEG",
    "CUDNN_BENCHMARK",
)
"""Keys that may change, with a warning: the run goes on, but is no longer bit by bit the run it was."""

OPEN = ("MODEL.TIMM.KWARGS.", "SCHEDULE.REPEAT.")
"""Beginnings of keys that are there in some configs only; all others every config of a version has."""

_DATASET_PARTS = {
    "annotations": "annotation file",
    "row": "row (classes, policies)",
    "excluded": "list of images left out (DATASETS.EXCLUDE)",
    "drawn": "draw of images (DATASETS.FEW_SHOT)",
}


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    return {
        "fx_d2": fx_d2.__version__,
        "detectron2": detectron2.__version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def dataset_hashes(cfg: CfgNode) -> dict[str, dict[str, Any]]:
    """What fixes the samples and their order, per split of DATASETS.TRAIN.

    Returns:
        "annotations": SHA-256 of the annotation file; "row"; "excluded": ids of the images left out, in order; "drawn":
        ids of the images that DATASETS.FEW_SHOT draws, in order, [] where all are taken.
    """
    exclude, few = cfg.DATASETS.EXCLUDE, cfg.DATASETS.FEW_SHOT.IMAGES > 0
    return {
        name: {
            "annotations": annotation_digest(name),
            "row": spec_of(name).to_dict(),
            "excluded": sorted(excluded_images(exclude, name)) if exclude else [],
            "drawn": [record["image_id"] for record in training_dicts(cfg, name)] if few else [],
        }
        for name in cfg.DATASETS.TRAIN
    }


def run_record(cfg: CfgNode) -> dict[str, Any]:
    """What `require_same_run` compares, as plain data for the checkpoint: config, datasets, processes, versions."""
    device = torch.device(cfg.MODEL.DEVICE).type
    return {
        "config": cfg.dump(),
        "datasets": dataset_hashes(cfg),
        "world_size": comm.get_world_size(),
        "versions": versions() | {"deformable attention": sampler_identity(cfg.MODEL.LOC.SAMPLER, device)},
    }


def require_same_run(stored: Mapping[str, Any], record: Mapping[str, Any], path: str) -> None:
    """Warn of what makes a resumed run differ in the last bits; refuse what makes it another run.

    Args:
        stored: a checkpoint's content.
        record: `run_record` of the command.
        path: of the checkpoint.

    Raises:
        FXError: keys of the config, annotations or rows have changed.
    """
    missing = [key for key in record if key not in stored]
    if missing:
        raise FXError(f"--resume: {path} does not say its {missing[0]}: start anew from its weights with MODEL.WEIGHTS")
    changed = differences(yaml.safe_load(stored["config"]), yaml.safe_load(record["config"]))
    changed = {key: pair for key, pair in changed.items() if not key.startswith(FREE)}
    inexact = {key: changed.pop(key) for key in INEXACT if key in changed}
    if changed:
        foreign = sorted(key for key, pair in changed.items() if None in pair and not key.startswith(OPEN))
        if foreign:
            raise FXError(
                f"--resume: {path} was written by another version of fx_d2, whose keys differ: {', '.join(foreign)}. "
                "Continue it with that version; or, to start another run from its weights, set MODEL.WEIGHTS to it, "
                "another OUTPUT_DIR, and leave --resume out"
            )
        raise FXError(
            f"--resume: the run of {path} had other settings: {_told(changed)}. Put them back; or, to start another "
            "run from its weights, set MODEL.WEIGHTS to it, another OUTPUT_DIR, and leave --resume out"
        )
    for name, now in record["datasets"].items():
        for key, what in _DATASET_PARTS.items():
            if stored["datasets"][name][key] != now[key]:
                raise FXError(
                    f"--resume: the {what} of {name} has changed since {path} was written, which changes "
                    "samples or their order: put it back, or start another run from its weights with MODEL.WEIGHTS"
                )
    for key in ("world_size", "versions"):
        if stored[key] != record[key]:
            inexact[key] = (stored[key], record[key])
    if inexact:
        logger.warning("resuming, but not bit by bit: %s", _told(inexact))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ -> (before, now); None where a key is absent."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **now}:
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[prefix + key] = (a, b)
    return found


def _told(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key} was {before} and is now {now}" for key, (before, now) in changed.items())
