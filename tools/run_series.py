#!/usr/bin/env python
"""Train and test one config over a grid of datasets, image counts, seeds or any keys; tabulate the results.

tools/run_series.py --config-file CONFIG --output DIR --grid DATASETS.FEW_SHOT.IMAGES=24,12,3 \\
    --grid SEED,DATASETS.FEW_SHOT.SEED=0,1,2 [KEY VALUE ...]
tools/run_series.py --config-file CONFIG --output DIR --datasets chexpert_val,nih_shenzhen_test

A cell is a combination of one value of each --grid and of --datasets (splits to test on; the model is trained on their
datasets). Each cell has its own folder in DIR: a run of tools/train_net.py, started or resumed, followed by an
evaluation of the splits in DATASETS.TEST in its subfolder test. The evaluated checkpoint is the best one for the first
pattern of SOLVER.CHECKPOINT_BEST, or the last one if there is no pattern. Cells that have been tested are skipped. The
first error ends the series (exit code 1). A run stopped by a signal ends it with exit code 75: start it again. The
table printed at the end has mean and standard deviation over seeds.

--dry-run prints a shell command line for each cell, for example for a job array:
    eval "$(tools/run_series.py --dry-run ... | sed -n "${SLURM_ARRAY_TASK_ID}p")"
--collect only reads existing results.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import yaml
from detectron2.config import CfgNode

from fx_d2.data.catalog import split_name
from fx_d2.data.loaders import STOP_SIGNALS
from fx_d2.engine import build_cfg
from fx_d2.engine.checkpoint_files import FINAL, best_name
from fx_d2.engine.resume import FREE, differences
from fx_d2.engine.signals import EXIT_CODE
from fx_d2.evaluation.report import HEADLINES, LABELS
from fx_d2.reporting import Run, read_runs
from fx_d2.reporting.runs import RESULTS, TEST
from fx_d2.reporting.tables import MEANS, Table, pooled
from fx_d2.structures import FXError

TRAIN_NET = Path(__file__).resolve().with_name("train_net.py")
Opts = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run of the series.

    Attributes:
        labels: axis -> value, as in folder names and the table; results are averaged over the axis "seed".
        cfg: of the training run, with OUTPUT_DIR.
        train: command of the training run.
        test: command of the evaluation.
    """

    labels: Mapping[str, str]
    cfg: CfgNode
    train: Opts
    test: Opts

    @property
    def folder(self) -> Path:
        """OUTPUT_DIR of the training run."""
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def trained(self) -> bool:
        """Whether training and its final evaluation are complete."""
        return (self.folder / FINAL).is_file() and (self.folder / RESULTS).is_file()

    @property
    def tested(self) -> bool:
        """Whether the cell is complete."""
        return (self.folder / TEST / RESULTS).is_file()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", type=Path, required=True, help="parent folder of the cells")
    parser.add_argument("--datasets", default="", metavar="SPLIT,...", help="one cell per split to test on")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY[,KEY]=VALUE,...", help="one cell per value")
    parser.add_argument("--num-gpus", type=int, default=1, help="per run, as for tools/train_net.py (default 1)")
    parser.add_argument("--prune", action="store_true", help="keep only the evaluated checkpoint of completed cells")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print the commands and exit")
    mode.add_argument("--collect", action="store_true", help="print the table of existing results")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for every cell")
    return parser.parse_args(argv)


def axes_of(args: argparse.Namespace) -> list[list[tuple[str, str, Opts]]]:
    """The values of each axis as (axis, value, KEY VALUE pairs); FXError for an invalid axis."""
    axes = []
    if args.datasets:
        pairs = [(split_name(name)[0], name) for name in args.datasets.split(",")]
        keys = ("DATASETS.TRAIN", "DATASETS.TEST")
        axes.append(
            [("DATASET", row, (keys[0], f"('{row}_train',)", keys[1], f"('{split}',)")) for row, split in pairs]
        )
    for text in args.grid:
        left, _, right = text.partition("=")
        keys, values = left.split(","), right.split(",")
        if not all(keys) or not all(values):
            raise FXError(f"--grid {text!r}: it must be KEY=VALUE,VALUE or KEY,KEY=VALUE,VALUE")
        axes.append([(keys[0], value, tuple(w for key in keys for w in (key, value))) for value in values])
    return axes


def build_cells(args: argparse.Namespace) -> list[Cell]:
    """All combinations of the axes' values; FXError for an unknown key or invalid value."""
    cells = []
    for combination in itertools.product(*axes_of(args)):
        labels = {axis.rpartition(".")[2].lower(): re.sub(r"[^\w.-]", "", value) for axis, value, _ in combination}
        name = "_".join(f"{axis}_{value}" for axis, value in labels.items()) or "run"
        opts = (*args.opts, *(word for _, _, pairs in combination for word in pairs))
        folder = args.output / name
        cfg = build_cfg(args.config_file, [*opts, "OUTPUT_DIR", str(folder)])
        patterns = cfg.SOLVER.CHECKPOINT_BEST
        weights = folder / (best_name(patterns[0]) if patterns else FINAL)
        base = (sys.executable, str(TRAIN_NET), "--config-file", args.config_file, "--num-gpus", str(args.num_gpus))
        train = (*base, "--resume", *opts, "OUTPUT_DIR", str(folder))
        test = (*base, "--eval-only", *opts, "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(folder / TEST))
        if patterns and any(split_name(split)[1] == "val" for split in cfg.DATASETS.TEST):
            raise FXError(
                f"SOLVER.CHECKPOINT_BEST would select the model on {', '.join(cfg.DATASETS.TEST)}, on which it is then "
                'tested: test on another split, or use the last model: SOLVER.CHECKPOINT_BEST "[]"'
            )
        cells.append(Cell(labels, cfg, train, test))
    folders = [cell.folder for cell in cells]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise FXError(f"--grid or --datasets: two cells would share the folder {twice}")
    return cells


def require_same_settings(cell: Cell) -> None:
    """FXError if the cell's folder contains a run with other settings, including other initial weights."""
    file = cell.folder / "config.yaml"
    if not file.is_file():
        return
    free = tuple(key for key in FREE if key != "MODEL.WEIGHTS")
    found = differences(yaml.safe_load(file.read_text(encoding="utf-8")), yaml.safe_load(cell.cfg.dump()))
    changed = [f"{key} was {old} and is now {new}" for key, (old, new) in found.items() if not key.startswith(free)]
    if changed:
        raise FXError(f"{cell.folder} holds a run of other settings: {'; '.join(changed)}. Choose another --output")


def call(command: Opts, folder: Path) -> None:
    """Run a command with its output appended to <folder>/console.txt; stop signals are forwarded to it.

    Raises:
        FXError: the command failed; with the last line of its output.
        SystemExit: `signals.EXIT_CODE`, if the run was stopped by a signal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    console = folder / "console.txt"
    with console.open("a", encoding="utf-8") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)

        def forward(number: int, frame: FrameType | None) -> None:
            del frame
            child.send_signal(number)

        before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
        try:
            code = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    # A process killed by a signal has its negative number as code; the launcher of several processes exits as a shell.
    if code in (EXIT_CODE, *(-number for number in STOP_SIGNALS), *(128 + number for number in STOP_SIGNALS)):
        sys.exit(EXIT_CODE)
    if code:
        lines = console.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
        raise FXError(f"{folder}: {last.removeprefix('error: ')} (see {console})")


def run_cell(cell: Cell, *, prune: bool) -> str:
    """Run the remaining commands of a cell; returns its status for display."""
    require_same_settings(cell)
    if cell.tested:
        return "already done"
    if not cell.trained:
        call(cell.train, cell.folder)
    tested = Path(cell.test[cell.test.index("MODEL.WEIGHTS") + 1])
    if not tested.is_file():
        raise FXError(
            f"{cell.folder}: {cell.cfg.SOLVER.CHECKPOINT_BEST[0]} was undefined in all evaluations, so there is no "
            f'{tested.name}: evaluate on more images, or use the last model: SOLVER.CHECKPOINT_BEST "[]"'
        )
    call(cell.test, cell.folder / TEST)
    if prune:
        for file in cell.folder.glob("model_*.pth"):
            if file != tested:
                file.unlink()
    return "done"


def series_table(cells: Sequence[Cell]) -> str:
    """Headline metrics of the tested cells in percent, with standard deviation over seeds or, for one, the interval.

    Cells that have not been tested are listed below the table.

    Raises:
        FXError: see `reporting.read_runs`.
    """
    tested = [cell for cell in cells if cell.tested]
    axes = [axis for axis in cells[0].labels if axis != "seed"]
    runs = read_runs([str(cell.folder) for cell in tested]) if tested else ()
    alike: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for cell, run in zip(tested, runs, strict=True):
        alike[tuple(cell.labels[axis] for axis in axes)].append(run)
    rows = []
    for labels, group in alike.items():
        results = group[0].results
        for which, split in itertools.product(results.models, results.splits) if results else ():
            for task in results.tasks(split):
                metric = HEADLINES[task][0]
                rows.append((*labels, which, split, LABELS[metric], pooled(group, which, split, task, metric)))
    columns = (*axes, "model", "tested on", "metric", "percent")
    notes = [f"{MEANS}; one run: its 95 % interval by patient"]
    left = [cell.folder.name for cell in cells if not cell.tested]
    notes += [f"not tested yet, {len(left)} of {len(cells)}: {', '.join(left)}"] * bool(left)
    return Table(key="series", title="Series", columns=columns, rows=tuple(rows), notes=tuple(notes)).markdown()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    try:
        cells = build_cells(args)
        if args.dry_run:
            for cell in cells:
                sys.stdout.write(f"{shlex.join(cell.train)} && {shlex.join(cell.test)}\n")
            return
        for number, cell in enumerate(() if args.collect else cells, 1):
            sys.stdout.write(f"{number}/{len(cells)} {cell.folder}: ")
            sys.stdout.flush()
            sys.stdout.write(f"{run_cell(cell, prune=args.prune)}\n")
        sys.stdout.write(f"\n{series_table(cells)}\n")
    except (FXError, OSError) as error:  # an OSError names the file
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
