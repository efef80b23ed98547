"""Measure parts of fx_d2 side by side with what they replace.

python tools/benchmark.py data
python tools/benchmark.py attention
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import attention, data

from fx_d2.structures import FXError

COMMANDS = {"data": data, "attention": attention}
"""Sub-commands: modules with HELP, add_arguments(parser) and run(args), which returns the report."""


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command and print its report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.__doc__))
    args = parser.parse_args(argv)
    try:
        print(COMMANDS[args.command].run(args))
    except FXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
