"""Checks that a resumed run is the same run: only settings without influence on the training may have changed."""

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
"""Prefixes of keys that may change: they do not influence the weights, or only their initialisation."""

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
"""Keys that may change, with a warning: the run continues, but not bit-for-bit as it would have without the change."""

OPEN = ("MODEL.TIMM.KWARGS.", "SCHEDULE.REPEAT.")
"""Prefixes of optional keys. All other keys are in every config of a version."""

_DATASET_PARTS = {
    "annotations": "annotation file",
    "row": "row (classes, policies)",
    "excluded": "list of excluded images (DATASETS.EXCLUDE)",
    "drawn": "sample of images (DATASETS.FEW_SHOT)",
}


def versions() -> dict[str, str]:
    """Versions of fx_d2, its main dependencies and Python."""
    return {
        "fx_d2": fx_d2.__version__,
        "detectron2": detectron2.__version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def dataset_hashes(cfg: CfgNode) -> dict[str, dict[str, Any]]:
    """What determines the training samples and their order, for each split of DATASETS.TRAIN.

    Returns:
        "annotations": SHA-256 of the annotation file; "row"; "excluded": sorted ids of the excluded images; "drawn":
        ids of the images sampled by DATASETS.FEW_SHOT, in order, or [] if all are used.
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
    """The record compared by `require_same_run`, as plain data: config, datasets, world size, versions."""
    device = torch.device(cfg.MODEL.DEVICE).type
    return {
        "config": cfg.dump(),
        "datasets": dataset_hashes(cfg),
        "world_size": comm.get_world_size(),
        "versions": versions() | {"deformable attention": sampler_identity(cfg.MODEL.LOC.SAMPLER, device)},
    }


def require_same_run(stored: Mapping[str, Any], record: Mapping[str, Any], path: str) -> None:
    """Reject a checkpoint of a different run; warn about changes that only prevent bit-for-bit identical results.

    Args:
        stored: content of the checkpoint.
        record: `run_record` of this command.
        path: of the checkpoint.

    Raises:
        FXError: config keys, annotations or dataset rows have changed.
    """
    missing = [key for key in record if key not in stored]
    if missing:
        raise FXError(f"--resume: {path} has no {missing[0]}: start a new run from its weights with MODEL.WEIGHTS")
    changed = differences(yaml.safe_load(stored["config"]), yaml.safe_load(record["config"]))
    changed = {key: pair for key, pair in changed.items() if not key.startswith(FREE)}
    inexact = {key: changed.pop(key) for key in INEXACT if key in changed}
    if changed:
        foreign = sorted(key for key, pair in changed.items() if None in pair and not key.startswith(OPEN))
        if foreign:
            raise FXError(
                f"--resume: {path} was written by another version of fx_d2, whose keys differ: {', '.join(foreign)}. "
                "Continue it with that version; or, to start a new run from its weights, set MODEL.WEIGHTS to this "
                "file and another OUTPUT_DIR, without --resume"
            )
        raise FXError(
            f"--resume: the run of {path} had other settings: {_list(changed)}. Restore them; or, to start a new run "
            "from its weights, set MODEL.WEIGHTS to this file and another OUTPUT_DIR, without --resume"
        )
    for name, now in record["datasets"].items():
        for key, what in _DATASET_PARTS.items():
            if stored["datasets"][name][key] != now[key]:
                raise FXError(
                    f"--resume: the {what} of {name} has changed since {path} was written, which changes the samples "
                    "or their order: restore it, or start a new run from its weights with MODEL.WEIGHTS"
                )
    for key in ("world_size", "versions"):
        if stored[key] != record[key]:
            inexact[key] = (stored[key], record[key])
    if inexact:
        logger.warning("resuming, but not bit for bit: %s", _list(inexact))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ -> (before, now), with None for an absent key."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **now}:
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[prefix + key] = (a, b)
    return found


def _list(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key} was {before} and is now {now}" for key, (before, now) in changed.items())
