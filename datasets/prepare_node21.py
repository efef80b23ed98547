"""NODE21: nodule labels and boxes; images without nodules are annotated as true negatives.

Example: python datasets/prepare_node21.py cxr_images --output datasets/prepared
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fx_d2.data.derived_boxes import clip_box
from fx_d2.data.metaimage import metaimage_type
from fx_d2.data.preparation import Case, Plan, make_parser, run
from fx_d2.data.release_files import find_file, find_files, index_files, read_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import FXError

SPEC = BY_NAME["node21"]
ORIGINS = ("filenames_orig_and_new.csv", "non_nodule_filenames_orig_and_new.csv")
"""Optional tables with the original dataset of each image."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the release; see `preparation.run`."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--intensity",
        nargs=2,
        type=float,
        default=(0, 4095),
        metavar=("BLACK", "WHITE"),
        help="grey range of images with more than 8 bits (default: 0 4095); a value outside is an error when read",
    )
    return run(parser, make_plan, argv)


def make_plan(args: argparse.Namespace) -> Plan:
    """One case per image in metadata.csv, annotated with (path, box corners). Patients are unknown."""
    root = args.source / "proccessed_data" if (args.source / "proccessed_data").is_dir() else args.source
    table = root / "metadata.csv"
    boxes: dict[str, list[list[float]]] = {}
    for row in read_rows(table, ("img_name", "x", "y", "width", "height", "label")):
        name = row["img_name"].removesuffix(".mha")
        if row["label"] not in ("0", "1", "0.0", "1.0"):
            raise FXError(f"{table}: image {name!r}: label {row['label']!r} is not 0 or 1")
        if name in boxes and (not boxes[name] or float(row["label"]) == 0):
            raise FXError(f"{table}: image {name!r} has a row without a nodule and another row")
        boxes.setdefault(name, [])
        if float(row["label"]):
            boxes[name].append(_corners(row, f"{table}: image {name!r}"))
    files, origins = index_files(root / "images", (".mha",)), read_origins(args.source)
    cases = [
        Case(
            image=files.get(name, root / "images" / f"{name}.mha"),
            patient_id=name,
            annotation=(str(files.get(name, "")), found),
            meta={"origin": origins[name]} if name in origins else {},
        )
        for name, found in boxes.items()
    ]
    work = partial(annotate, tuple(args.intensity))
    return Plan(spec=SPEC, root=args.source, cases=cases, annotate=work, note="every image is a separate patient")


def _corners(row: Mapping[str, str], where: str) -> list[float]:
    try:
        x, y, width, height = (float(row[key]) for key in ("x", "y", "width", "height"))
    except ValueError:
        raise FXError(f"{where}: x, y, width, height must be numbers") from None
    return [x, y, x + width, y + height]


def read_origins(source: Path) -> dict[str, str]:
    """The original dataset of each image, such as "jsrt", if the release includes the tables."""
    origins: dict[str, str] = defaultdict(str)
    for name in ORIGINS:
        if find_files(source, (name,)):
            rows = read_rows(find_file(source, (name,)), ("node21_img_id", "orig_dataset"))
            origins |= {row["node21_img_id"].removesuffix(".mha"): row["orig_dataset"] for row in rows}
    return dict(origins)


def annotate(
    intensity: tuple[float, float], annotation: tuple[str, Sequence[Sequence[float]]], shape: tuple[int, int]
) -> Mapping[str, Any]:
    """Label and boxes; an image without boxes is a true negative. 8-bit images need no grey range."""
    path, corners = annotation
    deep = not metaimage_type(Path(path)).startswith("8-bit unsigned")
    boxes = [(SPEC.loc_classes[0], clip_box(box, shape)) for box in corners]
    return {"labels": [int(bool(boxes))], "boxes": boxes} | ({"intensity": list(intensity)} if deep else {})


if __name__ == "__main__":
    sys.exit(main())
