"""Generate synthetic releases and prepare each with the script for the real one, ready for training.

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
"""Subfolder of the output for the synthetic releases."""

SOURCE = {"jsrt": "All247images", "vindr_organs": "vindr-cxr"}
"""Subfolder of a release that its script expects, if not the release folder."""

OPTIONS = {
    "jsrt": ("--scr", "{release}/SCR"),
    "vindr_organs": ("--chexmask", "{release}/chexmask/OriginalResolution/VinDr-CXR.csv"),
}
"""Additional options for the script of a dataset."""

DRAWN_BY_PATIENT = ("nih_shenzhen", "node21", "candid_ptx", "rsna_pneumonia", "siim_acr", "nih_montgomery", "jsrt")
"""Datasets without official splits."""

VALIDATION_BY_PATIENT = ("nih_chestxray14", "vindr_cxr", "chestx_det", "vindr_organs", "vindr_local")
"""Datasets whose official training split includes validation."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "the prepared datasets; the releases go to its subfolder releases", "the eleven of pretraining")
    parser.add_argument(
        "--workers", type=int, default=0, help="worker processes of each script (default 0: main process only)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate and prepare; returns the exit code, 1 after a one-line error."""
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
    """Options that give each split about the requested number of images if the release has no such split."""
    if row in DRAWN_BY_PATIENT:
        total = sum(counts.values())
        return [word for split in SPLITS[1:] for word in (f"--{split}-share", str(counts[split] / total))]
    if row in VALIDATION_BY_PATIENT:
        return ["--val-share", str(counts["val"] / max(1, counts["train"] + counts["val"]))]
    return []


if __name__ == "__main__":
    sys.exit(main())
