"""Draw the synthetic world: small phantom versions of the eleven pretraining datasets, ready to train on.

Example: python datasets/prepare_synthetic.py --output datasets/prepared/synthetic --seed 0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from synthetic.world import choose, make_world

from fx_d2.structures import SPLITS, FXError


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits with argparse's own message on a wrong one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; one sub-folder a dataset")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--size", type=int, default=256, help="height of the films in pixels (default 256)")
    for split, count in zip(SPLITS, (32, 8, 16), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"{split} films a dataset (default {count})")
    parser.add_argument("--datasets", help="names from the table of datasets, comma separated (default all eleven)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, then show a table of counts; returns the exit code, 2 after one line about what is wrong."""
    options = parse(arguments)
    names = [name.strip() for name in options.datasets.split(",")] if options.datasets else None
    counts = {split: getattr(options, split) for split in SPLITS}
    try:
        table = make_world(options.output, seed=options.seed, size=options.size, counts=counts, datasets=names)
    except FXError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if table is None:
        sys.stdout.write(f"{options.output} was made with these parameters already: nothing to do\n")
        return 0
    lines = [f"{'dataset':<18}{'tasks':<14}{'split':<7}{'films':>6}{'healthy':>9}{'boxes':>7}{'masks':>7}"]
    for spec in choose(names):
        for split, row in table[spec.name].items():
            numbers = f"{row['films']:>6}{row['healthy']:>9}{row['boxes']:>7}{row['masks']:>7}"
            lines.append(f"{spec.name:<18}{' '.join(spec.tasks):<14}{split:<7}{numbers}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
