"""Draw the synthetic world: small phantom films of every dataset, laid out on disk as the public releases are.

Example: python datasets/make_synthetic.py --output output/releases --seed 0
The preparation scripts then run on them as on the real releases (datasets/README.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from synthetic.releases import make_releases

from fx_d2.structures import SPLITS, FXError


def add_options(parser: argparse.ArgumentParser, output: str, every: str) -> None:
    """The options that say what is drawn; `output` and `every` complete the help of --output and --datasets."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=f"folder of {output}")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--size", type=int, default=256, help="height of the films in pixels (default 256)")
    for split, count in zip(SPLITS, (32, 8, 16), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"{split} films a dataset (default {count})")
    parser.add_argument("--datasets", help=f"names from the table of datasets, comma separated (default: {every})")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits with argparse's own message on a wrong one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "the releases, one a dataset", "all that can be drawn")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, then show a table of counts; returns the exit code, 1 after one line about what is wrong."""
    options = parse(arguments)
    names = [name.strip() for name in options.datasets.split(",")] if options.datasets else None
    counts = {split: getattr(options, split) for split in SPLITS}
    try:
        made = make_releases(options.output, seed=options.seed, size=options.size, counts=counts, datasets=names)
    except FXError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    lines = [f"{'release':<18}{'split':<7}{'films':>6}{'healthy':>9}{'findings':>10}"]
    for name, table in made.items():
        if table is None:
            lines.append(f"{name:<18}made with these parameters already")
            continue
        for split, row in table.items():
            lines.append(f"{name:<18}{split:<7}{row['films']:>6}{row['healthy']:>9}{row['findings']:>10}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
