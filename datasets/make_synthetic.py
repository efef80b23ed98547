"""Generate synthetic datasets: small phantom X-rays for every dataset, in the file layout of its public release.

Example: python datasets/make_synthetic.py --output output/releases --seed 0
The preparation scripts run on them as on the real releases (datasets/README.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from synthetic.releases import make_releases

from fx_d2.structures import SPLITS, FXError


def add_options(parser: argparse.ArgumentParser, output: str, every: str) -> None:
    """Add the generator options; `output` and `every` complete the help of --output and --datasets."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=f"folder of {output}")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--size", type=int, default=256, help="image height in pixels (default 256)")
    for split, count in zip(SPLITS, (32, 8, 16), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"{split} images per dataset (default {count})")
    parser.add_argument("--datasets", help=f"comma-separated names from the dataset table (default: {every})")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "the releases, one subfolder per dataset", "all that can be generated")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate the releases and print a table of counts; returns the exit code, 1 after a one-line error."""
    options = parse(arguments)
    names = [name.strip() for name in options.datasets.split(",")] if options.datasets else None
    counts = {split: getattr(options, split) for split in SPLITS}
    try:
        made = make_releases(options.output, seed=options.seed, size=options.size, counts=counts, datasets=names)
    except FXError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    lines = [f"{'release':<18}{'split':<7}{'images':>6}{'healthy':>9}{'findings':>10}"]
    for name, table in made.items():
        if table is None:
            lines.append(f"{name:<18}already up to date")
            continue
        for split, row in table.items():
            lines.append(f"{name:<18}{split:<7}{row['films']:>6}{row['healthy']:>9}{row['findings']:>10}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
