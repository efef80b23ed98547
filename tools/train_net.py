#!/usr/bin/env python
"""Train a Foundation X model, or evaluate it with --eval-only.

--print-schedule prints the passes of a cycle, --dry-run runs two steps of each kind of pass; neither saves anything.

Takes Detectron2's usual arguments: --config-file, --num-gpus (with MODEL.DEVICE cpu: number of processes),
--num-machines, --machine-rank, --dist-url, --resume (the run in OUTPUT_DIR, or a new one if it has no checkpoint yet),
--eval-only, and `KEY VALUE` overrides at the end. It can also be started with torchrun or srun. Exit codes: 0; 1 after
an error, reported in one line; 75 after SIGTERM or SIGUSR1, with everything saved (docs/training.md). A run writes to
OUTPUT_DIR: checkpoints, metrics.json and TensorBoard events, log.txt, evaluations.jsonl, and, for validation splits,
results.json, results.md, operating_points.json and inference/ (docs/results.md). Test splits are evaluated only with
--eval-only.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from torch import nn

from fx_d2.data import build_test_loader, evaluation_splits, file_content_hash
from fx_d2.engine import FXTrainer, build_cfg, launch, load_models, setup_run, versions
from fx_d2.engine.checkpoint_files import FINAL
from fx_d2.engine.distributed import on_first
from fx_d2.engine.guards import check_patterns
from fx_d2.engine.plan import build_plan
from fx_d2.engine.rehearsal import rehearse
from fx_d2.evaluation import (
    Evaluation,
    MetricOptions,
    build_thresholds,
    evaluate_model,
    metric_names,
    results_table,
    weights_hash,
    write_points,
    write_results,
)
from fx_d2.evaluation.operating_points import FILE_NAME as OPERATING_POINTS
from fx_d2.structures import FXError, specs_of

logger = logging.getLogger("fx_d2.train_net")


def evaluate(
    cfg: CfgNode, started: float, models: Mapping[str, nn.Module], final: bool, *, training: bool = True
) -> dict[str, float]:
    """Evaluate models on the splits selected by TEST.SPLIT, log the table of results and return the metrics.

    A `final` evaluation also writes results.json, results.md, predictions and scores and, for validation splits,
    operating_points.json.
    """
    splits = evaluation_splits(cfg, training=training)
    if not splits:
        return {}
    rows = specs_of(splits)
    specs = tuple({spec.name: spec for spec in (*rows, *specs_of(cfg.DATASETS.TRAIN))}.values())
    loaders = {name: functools.partial(build_test_loader, cfg, name) for name in splits}
    weights = on_first(lambda: {which: weights_hash(model) for which, model in models.items()}) if final else {}
    # In training, operating points next to the initial weights belong to those weights, not to this model.
    thresholds = {} if training else on_first(lambda: build_thresholds(cfg, weights))
    found = evaluate_model(cfg, models, loaders, specs, full=final, thresholds=thresholds)
    if comm.is_main_process():
        logger.info("results, in percent:\n%s", results_table(found.metrics, rows, found.intervals))
        if final:
            write_found(cfg, found, weights, splits, started)
    return found.metrics


def write_found(
    cfg: CfgNode, found: Evaluation, weights: Mapping[str, str], splits: Sequence[str], started: float
) -> None:
    """Write the results of a final evaluation, with their provenance, to OUTPUT_DIR."""
    files = {name: MetadataCatalog.get(name).json_file for name in splits}
    meta = {
        "command": " ".join(sys.argv),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": cfg.SEED,
        "weights": cfg.MODEL.WEIGHTS,
        "weights_hash": dict(weights),
        "splits": list(splits),
        "datasets": {name: {"content_hash": file_content_hash(file)} for name, file in files.items()},
        "minutes": round((time.time() - started) / 60, 1),
        "processes": comm.get_world_size(),
        "versions": versions(),
        "config": cfg.dump(),
    }
    folder = Path(cfg.OUTPUT_DIR)
    if found.operating_points:
        write_points(folder / OPERATING_POINTS, found.operating_points, weights, cfg.TEST.SPECIFICITY)
        logger.info("operating points: %s", folder / OPERATING_POINTS)
    logger.info("report: %s", write_results(folder / "results.json", found, meta, specs_of(splits)))


def run(args: argparse.Namespace) -> None:
    """The command, in one process."""
    started = time.time()
    cfg = setup_run(args, dry=args.dry_run)
    MetricOptions.from_config(cfg)  # rejects values that else only the evaluation would, which may be days away
    if args.eval_only:
        evaluate(cfg, started, load_models(cfg), final=True, training=False)
        return
    workers = cfg.DATALOADER.NUM_WORKERS
    if args.dry_run:
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # loading is timed separately
        cfg.freeze()
    trainer = FXTrainer(cfg, functools.partial(evaluate, cfg, started))
    splits = evaluation_splits(cfg, training=True)
    check_patterns(cfg, metric_names(trainer.models(), splits, specs_of(splits)))
    if args.dry_run:
        trainer.resume_or_load(args.resume, look_only=True)
        logger.info("dry run, nothing saved:\n%s", rehearse(trainer, workers))
        return
    trainer.resume_or_load(args.resume)
    trainer.train()
    logger.info("checkpoint: %s", os.path.join(cfg.OUTPUT_DIR, FINAL))


def main(args: argparse.Namespace) -> None:
    """`run`, with errors in the user's input reported in one line and exit code 1."""
    try:
        run(args)
    except FXError as error:
        sys.exit(f"error: {error}")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = default_argument_parser()
    parser.description = __doc__
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--print-schedule", action="store_true", help="print the passes of a cycle and exit")
    instead.add_argument("--dry-run", action="store_true", help="check all, run two steps of each kind of pass, exit")
    # Detectron2's default is one port for all runs of a user.
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args(argv)
    if args.eval_only and (args.print_schedule or args.dry_run):
        parser.error("--print-schedule and --dry-run apply to training: omit --eval-only")
    return args


def start(argv: Sequence[str] | None = None) -> None:
    """Entry point: run `main` in the requested number of processes."""
    args = parse_args(argv)
    try:
        cfg = build_cfg(args.config_file, list(args.opts))
        if args.print_schedule:
            plan = build_plan(cfg)
            print(f"{plan.table()}\n\n{plan.totals()}")
            return
        launch(main, args, cfg.MODEL.DEVICE)
    except FXError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    start()
