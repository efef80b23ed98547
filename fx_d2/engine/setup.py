"""From the command line to a frozen config."""

from __future__ import annotations

import argparse
import logging
import os

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from fx_d2 import modeling  # noqa: F401  registers the model
from fx_d2.config import add_fx_config
from fx_d2.data import register_datasets
from fx_d2.engine.resume import differences
from fx_d2.structures import FXError

INSTEAD = {
    "DATALOADER.SAMPLER_TRAIN": "SCHEDULE.STRATEGY",
    "INPUT.MAX_SIZE_TRAIN": "INPUT.SIZE",
    "INPUT.MAX_SIZE_TEST": "INPUT.SIZE",
    "INPUT.MIN_SIZE_TRAIN": "INPUT.SIZE",
    "INPUT.MIN_SIZE_TEST": "INPUT.SIZE",
    "INPUT.RANDOM_FLIP": "INPUT.{CLS,LOC,SEG}.FLIP",
    "MODEL.BACKBONE.FREEZE_AT": "MODEL.TIMM.FROZEN_STAGES",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_CYCLES or CHECKPOINT_STEPS",
    "SOLVER.CLIP_GRADIENTS.ENABLED": "SOLVER.CLIP_NORM",
    "SOLVER.IMS_PER_BATCH": "SCHEDULE.BATCH_SIZE",
    "SOLVER.MAX_ITER": "SCHEDULE.CYCLES",
    "SOLVER.REFERENCE_WORLD_SIZE": "SOLVER.REFERENCE_BATCH",
    "SOLVER.STEPS": "SOLVER.FINAL_LR_FACTOR (cosine schedule)",
    "SOLVER.WARMUP_ITERS": "SOLVER.WARMUP_CYCLES",
    "TEST.DETECTIONS_PER_IMAGE": "MODEL.LOC.NUM_SELECT",
    "TEST.EVAL_PERIOD": "TEST.EVAL_CYCLES or EVAL_PASSES",
}
"""Common Detectron2 keys that fx_d2 does not read -> their replacements."""


def build_cfg(config_file: str, opts: list[str]) -> CfgNode:
    """Merge the defaults, the config file and `KEY VALUE` pairs, in this order.

    Raises:
        FXError: the file is missing or not valid yaml, a key or value is invalid, a key of INSTEAD is set, or a
            command-line option follows the pairs.
    """
    late = next((word for word in opts if str(word).startswith("--")), None)
    if late is not None:
        raise FXError(f"{late} comes after KEY VALUE pairs and would be taken for one of them: put it before them")
    cfg = get_cfg()
    add_fx_config(cfg)
    if config_file and not os.path.isfile(config_file):
        raise FXError(f"config file {config_file} does not exist")
    where = " ".join(str(word) for word in (config_file, *opts) if word != "")
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(opts)
    except KeyError as error:
        raise FXError(f"{where}: {error.args[0]}. The keys are listed in fx_d2/config.py") from error
    except (AttributeError, TypeError) as error:  # what fvcore and yacs raise for a file or key of the wrong structure
        raise FXError(f"{where}: not a mapping of keys to values, or a key below one that has a value") from error
    except (ValueError, AssertionError, OSError, RecursionError, yaml.YAMLError) as error:
        raise FXError(f"{where}: {' '.join(str(error).split())}") from error
    default = get_cfg()
    add_fx_config(default)
    for key, (before, now) in differences(default, cfg).items():
        if key in INSTEAD:
            raise FXError(f"{key} is a Detectron2 key and has no effect here: use {INSTEAD[key]}")
        if now is None and before is not None:
            raise FXError(f"{where}: {key} has no value: give one, or leave the key out")
    return cfg


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command; registers its datasets, checks its device and makes it the current one.

    Args:
        args: with `config_file` and `opts`, as parsed by Detectron2's `default_argument_parser`.
    """
    cfg = build_cfg(args.config_file, list(args.opts))
    check_device(cfg.MODEL.DEVICE)
    if cfg.MODEL.DEVICE.startswith("cuda:"):
        torch.cuda.set_device(cfg.MODEL.DEVICE)  # else pinned memory and default-device calls use cuda:0
    register_datasets(cfg)
    cfg.freeze()
    return cfg


def setup_run(args: argparse.Namespace, *, dry: bool = False) -> CfgNode:
    """`setup_cfg`, then Detectron2's `default_setup`: output folder, logger, environment, seed.

    With `dry`, only fx_d2's own log is written to the output folder.
    """
    cfg = setup_cfg(args)
    shown = cfg.clone()
    if dry:
        shown.defrost()
        shown.OUTPUT_DIR = None  # then Detectron2 writes no file
    try:
        default_setup(shown, args)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise FXError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written: {error.strerror}") from error
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fx_d2")
    logging.getLogger("detectron2.data.common").setLevel(logging.WARNING)  # three lines per dataset
    logging.getLogger("detectron2.engine.train_loop").addFilter(_in_one_line)
    return cfg


def _in_one_line(record: logging.LogRecord) -> bool:
    """Log filter: drop the traceback that Detectron2's training loop logs, for an FXError."""
    if record.exc_info and isinstance(record.exc_info[1], FXError):
        record.msg, record.args, record.exc_info = str(record.exc_info[1]), (), None
    return True


def check_device(device: str) -> None:
    """FXError if the name is not that of a torch device, or the device is not available."""
    try:
        torch.device(device)
    except RuntimeError as error:
        raise FXError(f"MODEL.DEVICE is {device!r}: set it to cpu, cuda or cuda:N") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise FXError(f"MODEL.DEVICE is {device}, but torch sees no GPU here: add `MODEL.DEVICE cpu`")
    if device.startswith("cuda:") and int(device.removeprefix("cuda:")) >= torch.cuda.device_count():
        raise FXError(f"MODEL.DEVICE is {device}, but torch sees {torch.cuda.device_count()} GPUs here, from cuda:0 on")
