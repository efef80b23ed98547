"""Shared code of the preparation scripts: command line, splits, parallel reading of image sizes, writing, counting.

A script reads the tables of its release and returns a `Plan`: a `Case` for every image, and a function that converts
the annotation of a case to labels, boxes and masks. Images are not copied.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from fx_d2.data.annotations import SplitRequest, check_patients, load_split, write_spec, write_splits
from fx_d2.data.cache import cache_images
from fx_d2.data.catalog import check_own_row
from fx_d2.data.image_io import image_size, read_image
from fx_d2.data.parallel import map_images
from fx_d2.data.splits import DEFAULT_SHARES, fill_splits, find_listed, read_split_lists
from fx_d2.data.summary import count_table
from fx_d2.structures import SPLITS, DatasetSpec, FXError

logger = logging.getLogger(__name__)

Annotate = Callable[[Any, tuple[int, int]], Mapping[str, Any]]
"""Maps a case's annotation and (height, width) to fields of `write_split`'s mapping, usually `labels`, `boxes` and
`masks`; omitted ones are not annotated. Its FXErrors need not name the image: the caller adds it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image of a release, as described by its tables.

    Attributes:
        image: its file, checked later.
        patient_id: all images of a patient go to the same split.
        split: the official split; "" = none.
        study_id: "" = unknown.
        annotation: input of `Plan.annotate`; plain data.
        meta: sex, age, view, etc.; plain data.
    """

    image: Path
    patient_id: str
    split: str = ""
    study_id: str = ""
    annotation: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A release as described by its tables.

    Attributes:
        spec: the dataset row.
        root: folder that contains all images.
        cases: the images.
        annotate: see `Annotate`; a module-level function or a partial of one, as it is pickled.
        release: version of the release, if known.
        note: choices made, appended to `source` in the annotation files.
    """

    spec: DatasetSpec
    root: Path
    cases: Sequence[Case]
    annotate: Annotate
    release: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `prepare`: the common command-line options (see `make_parser`)."""

    output: Path
    splits: Path | None = None
    val_share: float | None = None
    test_share: float | None = None
    seed: int = 0
    workers: int = 0
    limit: int = 0
    cache_size: int = 0
    verify: bool = False
    dry_run: bool = False
    skip_bad: bool = False


Prepared = tuple[Path, dict[str, list[dict[str, Any]]]]
"""The output folder (not written in a dry run), and the Detectron2 dicts of `load_split` by split."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options common to all scripts; each script adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of the release, as downloaded")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="root of the prepared datasets")
    parser.add_argument("--splits", type=Path, metavar="DIR", help="folder of your own train.txt, val.txt, test.txt")
    add_draw_options(parser)
    cores = min(8, os.cpu_count() or 1)
    parser.add_argument(
        "--workers", type=int, default=cores, help="worker processes; 0 = main process only (default %(default)s)"
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="at most N images per split, for a trial run")
    parser.add_argument(
        "--cache-size",
        type=int,
        default=0,
        metavar="N",
        help="train from 8-bit copies with a shorter side of N pixels, written next to the annotations (default: off)",
    )
    parser.add_argument("--verify", action="store_true", help="decode every image to detect truncated files")
    parser.add_argument("--dry-run", action="store_true", help="check and count, write nothing")
    parser.add_argument("--skip-bad", action="store_true", help="skip invalid images instead of stopping")
    return parser


def add_draw_options(parser: argparse.ArgumentParser) -> None:
    """Add --val-share, --test-share and --seed, the arguments of `splits.fill_splits`."""
    for split, share in DEFAULT_SHARES.items():
        text = f"fraction by patient, of all images if there are no splits (default {share:g}), else of train (0)"
        parser.add_argument(f"--{split}-share", type=float, metavar="X", help=text)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random split (default 0)")


def run(parser: argparse.ArgumentParser, make_plan: Callable[[Any], Plan], argv: Sequence[str] | None = None) -> int:
    """`main` of a script: prints a table of counts and returns 0, or a one-line error to stderr and returns 1."""
    args = parser.parse_args(argv)
    options = Options(**{option.name: getattr(args, option.name) for option in fields(Options)})

    def work() -> tuple[DatasetSpec, Prepared]:
        plan = make_plan(args)
        return plan.spec, prepare(plan, options)

    return report(work, args.output, dry_run=args.dry_run)


def report(work: Callable[[], tuple[DatasetSpec, Prepared]], output: Path, *, dry_run: bool = False) -> int:
    """Run a script and print a summary to stdout (returns 0), or a one-line error to stderr (returns 1).

    Args:
        work: does the preparation; returns the dataset row and what was prepared.
        output: root of the prepared datasets.
        dry_run: whether nothing has been written.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        spec, (target, splits) = work()
    except FXError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"error: {error.filename or output}: {error.strerror or error}\n")
        return 1
    sys.stdout.write(count_table(spec, splits) + "\n")
    if dry_run:
        sys.stdout.write("nothing written (--dry-run)\n")
        return 0
    first = next(iter(splits))
    sys.stdout.write(f"written to {target}; use it as DATASETS.ROOT {output} and split {target.name}_{first}\n")
    return 0


def prepare(plan: Plan, options: Options) -> Prepared:
    """Write `<output>/<name>/{train,val,test}.json` and dataset.yaml for a plan.

    Raises:
        FXError: the first problem found; no annotation files were written.
    """
    for option, value in (("--limit", options.limit), ("--cache-size", options.cache_size)):
        if value < 0:
            raise FXError(f"{option} is {value}; it must be 0 or more")
    check_own_row(plan.spec, str(plan.root))
    if not plan.cases:
        raise FXError(f"{plan.root}: the tables of the release list no images")
    cases, target = _choose(plan, options), options.output / plan.spec.name
    check_patients({split: [vars(case) for case in cases if case.split == split] for split in SPLITS})
    cache = f"cache_{options.cache_size}" if options.cache_size and not options.dry_run else ""
    work = partial(_annotate, plan.annotate, plan.root, options, target / cache if cache else None)
    images: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    skipped = 0
    # The iterator is closed, and its workers stopped, where the loop is left.
    for case, (image, problem) in zip(
        cases, map_images(work, cases, workers=options.workers, name=plan.spec.name), strict=True
    ):
        if image is not None:
            images[case.split].append(image)
        elif options.skip_bad:
            skipped += 1
            logger.warning("skipped: %s", problem)
        else:
            raise FXError(f"{problem} (--skip-bad skips such images)")
    if skipped:
        logger.warning("skipped %d of %d images", skipped, len(cases))
    images = {split: rows for split, rows in images.items() if rows}
    if not images:
        raise FXError(f"{plan.root}: no images are left")
    texts = {"source": "; ".join(filter(None, (plan.spec.source, plan.note))), "release": plan.release}
    if not options.dry_run:
        image_root = cache or relative_root(plan.root, target)
        return target, write_dataset(target, plan.spec, images, image_root=image_root, **texts)
    with tempfile.TemporaryDirectory() as folder:
        root = str(plan.root.resolve())
        return target, write_dataset(Path(folder), plan.spec, images, image_root=root, **texts)


def relative_root(images: Path, target: Path) -> str:
    """The `image_root` of annotation files in `target`: relative if the images are inside the root of the prepared
    datasets, so that the root can be moved, otherwise absolute."""
    images = images.resolve()
    inside = images.is_relative_to(target.parent.resolve())
    return os.path.relpath(images, target.resolve()) if inside else str(images)


def write_dataset(
    target: Path,
    spec: DatasetSpec,
    images: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    image_root: str,
    source: str = "",
    release: str = "",
) -> dict[str, list[dict[str, Any]]]:
    """Write the annotation files and dataset.yaml of a dataset and load them back; stale splits are removed.

    Args:
        target: the folder.
        spec: the dataset row.
        images: by split, in the format of `write_split`.
        image_root: image folder, as written to the files.
        source: where the data comes from.
        release: its version.

    Returns:
        the Detectron2 dicts by split.
    """
    requests = [
        SplitRequest(target / f"{split}.json", split, rows, source=source, release=release)
        for split, rows in images.items()
    ]
    write_splits(requests, spec=spec, image_root=image_root)
    for split in set(SPLITS) - set(images):
        # A split from an earlier preparation may contain patients that are now in another split.
        if (target / f"{split}.json").is_file():
            logger.warning("%s: removed, the dataset no longer has this split", target / f"{split}.json")
            (target / f"{split}.json").unlink()
    write_spec(target, spec)
    return {split: load_split(target / f"{split}.json", spec, split) for split in images}


def _choose(plan: Plan, options: Options) -> list[Case]:
    """The cases with their splits assigned, at most `limit` per split."""
    if options.splits is not None:
        cases = _listed(plan, read_split_lists(options.splits), options.splits)
    else:
        cases = _drawn(plan, options)
    if not options.limit:
        return cases
    return [case for split in SPLITS for case in [c for c in cases if c.split == split][: options.limit]]


def _listed(plan: Plan, owner: Mapping[str, str], folder: Path) -> list[Case]:
    """The cases named in split lists; FXError for a name that is not found."""
    paths = [case.image.relative_to(plan.root).as_posix() for case in plan.cases]
    places = find_listed(owner, paths, str(folder))
    if len(places) < len(paths):
        logger.warning("%s: %d of %d images are in none of the lists", folder, len(paths) - len(places), len(paths))
    return [replace(plan.cases[place], split=split) for place, split in zip(places, owner.values(), strict=True)]


def _drawn(plan: Plan, options: Options) -> list[Case]:
    """The cases with official splits, or sampled by patient where there are none or a share is requested."""
    shares = {"val": options.val_share, "test": options.test_share}
    patients, given = [case.patient_id for case in plan.cases], [case.split for case in plan.cases]
    splits = fill_splits(patients, given, shares, options.seed)
    return [replace(case, split=split) for case, split in zip(plan.cases, splits, strict=True)]


Outcome = tuple[dict[str, Any] | None, str]
"""An image in the format of `write_split`, or None and an error message."""


def _annotate(annotate: Annotate, root: Path, options: Options, cache: Path | None, case: Case) -> Outcome:
    """Prepare one image; it is decoded for `verify` and for the cache, which detects damaged files."""
    try:
        height, width = image_size(case.image)
        try:
            annotation = annotate(case.annotation, (height, width))
        except FXError as error:
            raise FXError(f"{case.image}: {error}") from None
        image: dict[str, Any] = {
            "file_name": case.image.relative_to(root).as_posix(),
            "width": width,
            "height": height,
            "patient_id": case.patient_id,
            "study_id": case.study_id,
            "meta": dict(case.meta),
        } | dict(annotation)
        if cache is not None:
            (image,) = cache_images([image], image_root=root, cache_root=cache, shorter=options.cache_size)
        elif options.verify:
            read_image(case.image, intensity=image.get("intensity"))
    except FXError as error:
        return None, str(error)
    return image, ""
