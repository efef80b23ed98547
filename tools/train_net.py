#!/usr/bin/env python
"""Train, or with --eval-only evaluate, a Foundation X model.

Detectron2's usual arguments: --config-file, --num-gpus (with MODEL.DEVICE cpu: processes), --num-machines,
--machine-rank, --dist-url, --resume (the run in OUTPUT_DIR, from the beginning if there is none yet), --eval-only, and
`KEY VALUE` overrides at the end. torchrun and srun start it as well. Exit codes: 0; 1 after an error, told in one line;
75 after SIGTERM or SIGUSR1, with everything saved (docs/training.md). A run leaves in OUTPUT_DIR: checkpoints,
metrics.json and TensorBoard events, log.txt, results.json and results.md,
inference/predictions_<student|teacher>.json.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from torch import nn

from fx_d2.data import build_test_loader
from fx_d2.engine import FXTrainer, build_cfg, launch, load_models, setup_run, versions
from fx_d2.engine.checkpoint_files import FINAL
from fx_d2.evaluation import evaluate_model, results_table, write_results
from fx_d2.structures import FXError, specs_of

logger = logging.getLogger("fx_d2.train_net")


def evaluate(cfg: CfgNode, started: float, models: Mapping[str, nn.Module]) -> dict[str, float]:
    """Evaluate models on DATASETS.TEST, print the table, write results.json and results.md."""
    specs = specs_of(cfg.DATASETS.TEST)
    loaders = {name: functools.partial(build_test_loader, cfg, name) for name in cfg.DATASETS.TEST}
    metrics = evaluate_model(cfg, models, loaders, specs)
    if comm.is_main_process():
        meta = {
            "command": " ".join(sys.argv),
            "seed": cfg.SEED,
            "weights": cfg.MODEL.WEIGHTS,
            "splits": list(cfg.DATASETS.TEST),
            "minutes": round((time.time() - started) / 60, 1),
            "versions": versions(),
            "config": cfg.dump(),
        }
        report = write_results(os.path.join(cfg.OUTPUT_DIR, "results.json"), metrics, meta, specs)
        logger.info("results, in percent:\n%s", results_table(metrics, specs))
        logger.info("report: %s", report)
    return metrics


def run(args: argparse.Namespace) -> None:
    """One process of the command."""
    started = time.time()
    cfg = setup_run(args)
    if args.eval_only:
        evaluate(cfg, started, load_models(cfg))
        return
    trainer = FXTrainer(cfg, functools.partial(evaluate, cfg, started))
    trainer.resume_or_load(args.resume)
    trainer.train()
    logger.info("checkpoint: %s", os.path.join(cfg.OUTPUT_DIR, FINAL))


def main(args: argparse.Namespace) -> None:
    """`run`, with an error of the user's input as one line and exit code 1."""
    try:
        run(args)
    except FXError as error:
        sys.exit(f"error: {error}")


def start(argv: Sequence[str] | None = None) -> None:
    """The command: as many processes of `main` as asked for."""
    parser = default_argument_parser()
    # Detectron2's default is one port for all runs of a user.
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args(argv)
    try:
        launch(main, args, build_cfg(args.config_file, list(args.opts)).MODEL.DEVICE)
    except FXError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    start()
