"""Draw the synthetic world as public releases, and prepare each with the script for the real one: ready to train on.

Example: python datasets/prepare_synthetic.py --output output/synthetic --seed 0
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

from make_synthetic import add_options
from synthetic.releases import drawable, make_releases

from fx_d2.data.table import PRETRAINING
from fx_d2.structures import SPLITS, FXError

RELEASES = "releases"
"""Folder of the drawn releases in the output."""

SOURCE = {"jsrt": "All247images", "vindr_organs": "vindr-cxr"}
"""What a script is given of a release, where it is not the release's own folder."""

OPTIONS = {
    "jsrt": ("--scr", "{release}/SCR"),
    "vindr_organs": ("--chexmask", "{release}/chexmask/OriginalResolution/VinDr-CXR.csv"),
}
"""Further options of a row's script."""

DRAWN_BY_PATIENT = ("nih_shenzhen", "node21", "candid_ptx", "rsna_pneumonia", "siim_acr", "nih_montgomery", "jsrt")
"""Rows whose release has no splits."""

VALIDATION_BY_PATIENT = ("nih_chestxray14", "vindr_cxr", "chestx_det", "vindr_organs", "vindr_local")
"""Rows whose release has training and validation in one."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits with argparse's own message on a wrong one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "the prepared datasets; the releases go into its folder releases", "the eleven of pretraining")
    parser.add_argument("--workers", type=int, default=0, help="processes of each script (default 0: no others)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw and prepare; returns the exit code, 1 after one line about what is wrong."""
    options = parse(arguments)
    names = options.datasets.split(",") if options.datasets else [spec.name for spec in PRETRAINING]
    counts = {split: getattr(options, split) for split in SPLITS}
    try:
        specs = drawable([name.strip() for name in names])
        rows = [spec.name for spec in specs]
        releases = options.output / RELEASES
        make_releases(releases, seed=options.seed, size=options.size, counts=counts, datasets=rows)
    except FXError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for row in rows:
        release = releases / row
        command = [str(release / SOURCE.get(row, "")), "--output", str(options.output), *_shares(row, counts)]
        command += [word.format(release=release) for word in OPTIONS.get(row, ())]
        if code := importlib.import_module(f"prepare_{row}").main([*command, "--workers", str(options.workers)]):
            return code
    return 0


def _shares(row: str, counts: Mapping[str, int]) -> list[str]:
    """Options that draw about as many films into each split as were asked for, where the release leaves it open."""
    if row in DRAWN_BY_PATIENT:
        total = sum(counts.values())
        return [word for split in SPLITS[1:] for word in (f"--{split}-share", str(counts[split] / total))]
    if row in VALIDATION_BY_PATIENT:
        return ["--val-share", str(counts["val"] / max(1, counts["train"] + counts["val"]))]
    return []


if __name__ == "__main__":
    sys.exit(main())
