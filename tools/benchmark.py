#!/usr/bin/env python
"""Benchmark fx_d2 against the implementations it replaces.

tools/benchmark.py step
tools/benchmark.py all --output output/benchmark.md
tools/benchmark.py lock --device cuda --sizes 224 512 --repeat 20

Read the ratios: candidates take turns in one process, and each ratio is reported as the median over the repetitions
with the minimum and the maximum. For every candidate, glibc is set to keep freed memory, for which the command restarts
itself (--allocator default turns this off). `SECTION --help` describes what is measured and how. The theoretical cost
of the model: tools/benchmarks/scaling.py and docs/performance.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks import (
    attention,
    checkpoint,
    compiling,
    criterion,
    data,
    evaluation,
    inference,
    lock,
    memory,
    precision,
    profiling,
    startup,
    step,
    update,
    wait,
)
from benchmarks.report import described, environment, restart_with_allocator, write_report
from benchmarks.world import add_common_options

from fx_d2.engine.setup import check_device
from fx_d2.structures import FXError

SECTIONS = {
    "step": step,
    "lock": lock,
    "memory": memory,
    "inference": inference,
    "attention": attention,
    "criterion": criterion,
    "update": update,
    "data": data,
    "wait": wait,
    "evaluation": evaluation,
    "startup": startup,
    "checkpoint": checkpoint,
    "precision": precision,
    "compile": compiling,
    "profile": profiling,
}
"""Modules with HELP, add_arguments(parser) and run(args), which returns Markdown; in the order of the report."""


def parse_args(argv: Sequence[str]) -> list[argparse.Namespace]:
    """The options of the requested section, or of all sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="section", required=True, metavar="SECTION")
    for name, module in SECTIONS.items():
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_common_options(command)
        module.add_arguments(command)
    every = commands.add_parser("all", help="all sections, with the common options")
    add_common_options(every)
    args = parser.parse_args(argv)
    if args.section != "all":
        return [args]
    rest = [*argv[: argv.index("all")], *argv[argv.index("all") + 1 :]]
    return [parser.parse_args([name, *rest]) for name in SECTIONS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run sections and print the report; returns the exit code."""
    chosen = parse_args(sys.argv[1:] if argv is None else argv)
    common = chosen[0]
    logging.disable(logging.WARNING)  # the trainers' log is not part of the report
    try:
        check_device(common.device)
        facts, sections, threads = environment(common.device), {}, torch.get_num_threads()
        print(described(facts), flush=True)
        for args in chosen:
            torch.set_num_threads(args.threads or threads)
            sections[args.section] = SECTIONS[args.section].run(args)
            print(f"\n### {args.section}\n\n{sections[args.section]}", flush=True)
            if common.output:  # after each section: results are not lost if a later one fails
                write_report(Path(common.output), facts, sections)
    except FXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        logging.disable(logging.NOTSET)
    return 0


if __name__ == "__main__":
    if all(args.allocator == "tuned" for args in parse_args(sys.argv[1:])):
        restart_with_allocator()
    sys.exit(main())
