"""What all preparation scripts share: command line, splits, reading the images' sizes in parallel, writing, counting.

A script reads its release's tables and makes a `Plan`: for every image a `Case`, and one function that turns a case's
annotation into labels, boxes and masks. Images stay where the release has them.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fx_d2.data.annotations import SplitRequest, check_patients, load_split, write_spec, write_splits
from fx_d2.data.cache import cache_images
from fx_d2.data.catalog import check_own_row
from fx_d2.data.image_io import image_size, read_image
from fx_d2.data.splits import DEFAULT_SHARES, fill_splits, find_listed, read_split_lists
from fx_d2.data.summary import count_table
from fx_d2.structures import SPLITS, DatasetSpec, FXError

logger = logging.getLogger(__name__)

Annotate = Callable[[Any, tuple[int, int]], Mapping[str, Any]]
"""From a case's annotation and (height, width) to fields of `write_split`'s mapping, usually `labels`, `boxes` and
`masks`; what it leaves out is not annotated. Its FXError names what is wrong, the image is named around it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image as a release's tables know it.

    Attributes:
        image: its file; whether it is there and readable is found out later.
        patient_id: images of one patient never go to two splits.
        split: the release's own split; "" = it has none.
        study_id: "" = not known.
        annotation: what `Plan.annotate` makes labels, boxes and masks of; plain data.
        meta: sex, age, view and the like, plain data.
    """

    image: Path
    patient_id: str
    split: str = ""
    study_id: str = ""
    annotation: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A release as its tables tell it.

    Attributes:
        spec: the row.
        root: folder that holds all images.
        cases: the images.
        annotate: see `Annotate`; a function of a module, or a partial of one: it is sent to other processes.
        release: its version, where the files tell.
        note: choices that were made, for the annotation file's `source`.
    """

    spec: DatasetSpec
    root: Path
    cases: Sequence[Case]
    annotate: Annotate
    release: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to prepare; the attributes are the common options of the command line (see `make_parser`)."""

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
"""The folder that was written (or would have been), and the Detectron2 dicts by split as `load_split` gives them."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all scripts have; a script adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of the release, as it was downloaded")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="root of the prepared datasets")
    parser.add_argument("--splits", type=Path, metavar="DIR", help="train.txt, val.txt, test.txt of your own")
    add_draw_options(parser)
    cores = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=cores, help="processes; 0 = no others (default %(default)s)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="at most N images a split, for a trial")
    parser.add_argument(
        "--cache-size",
        type=int,
        default=0,
        metavar="N",
        help="train from 8-bit copies of shorter side N pixels, made beside the annotations (default: no copies)",
    )
    parser.add_argument("--verify", action="store_true", help="decode every image: truncated files are found now")
    parser.add_argument("--dry-run", action="store_true", help="check and count everything, write nothing")
    parser.add_argument("--skip-bad", action="store_true", help="leave images with a fault out instead of stopping")
    return parser


def add_draw_options(parser: argparse.ArgumentParser) -> None:
    """--val-share, --test-share and --seed, the arguments of `splits.fill_splits`."""
    for split, share in DEFAULT_SHARES.items():
        text = f"share of the images, by patient: where no splits are given (default {share:g}), else from train (0)"
        parser.add_argument(f"--{split}-share", type=float, metavar="X", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of patients (default 0)")


def run(parser: argparse.ArgumentParser, make_plan: Callable[[Any], Plan], argv: Sequence[str] | None = None) -> int:
    """A script's `main`: returns 0 after a table of counts, or 1 after one line on stderr about what is wrong."""
    args = parser.parse_args(argv)

    def work() -> tuple[DatasetSpec, Prepared]:
        plan = make_plan(args)
        return plan.spec, prepare(plan, Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__}))

    return report(work, args.output, dry_run=args.dry_run)


def report(work: Callable[[], tuple[DatasetSpec, Prepared]], output: Path, *, dry_run: bool = False) -> int:
    """Do the work of a script and say what came out, on stdout, or in one line on stderr what is wrong: 0 or 1.

    Args:
        work: gives the row, and what was prepared of it.
        output: root of the prepared datasets.
        dry_run: whether nothing was written.
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
        FXError: one clear line about the first thing that is wrong; nothing was written then.
    """
    check_own_row(plan.spec, str(plan.root))
    if not plan.cases:
        raise FXError(f"{plan.root}: the release's tables name no image")
    cases, target = _choose(plan, options), options.output / plan.spec.name
    check_patients({split: [vars(case) for case in cases if case.split == split] for split in SPLITS})
    cache = f"cache_{options.cache_size}" if options.cache_size and not options.dry_run else ""
    work = partial(_annotate, plan.annotate, plan.root, options, target / cache if cache else None)
    images: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    skipped = 0
    for case, image, problem in _results(work, cases, options.workers, plan.spec.name):
        if image is not None:
            images[case.split].append(image)
        elif options.skip_bad:
            skipped += 1
            logger.warning("left out: %s", problem)
        else:
            raise FXError(f"{problem} (--skip-bad leaves such images out)")
    if skipped:
        logger.warning("%d of %d images left out", skipped, len(cases))
    images = {split: rows for split, rows in images.items() if rows}
    if not images:
        raise FXError(f"{plan.root}: no image is left")
    texts = {"source": "; ".join(filter(None, (plan.spec.source, plan.note))), "release": plan.release}
    if not options.dry_run:
        image_root = cache or relative_root(plan.root, target)
        return target, write_dataset(target, plan.spec, images, image_root=image_root, **texts)
    with tempfile.TemporaryDirectory() as folder:
        root = str(plan.root.resolve())
        return target, write_dataset(Path(folder), plan.spec, images, image_root=root, **texts)


def relative_root(images: Path, target: Path) -> str:
    """How annotation files in `target` name the folder of images: relative when it lies in the root of the prepared
    datasets, so that root can be moved, else absolute."""
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
    """Write the files of a dataset's folder and read them back; splits that it does not have any more are removed.

    Args:
        target: the folder.
        spec: the row.
        images: by split, in `write_split`'s form; see there also for the other arguments.
        image_root: how the files name the folder of the images.
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
        # A split of an earlier preparation may hold patients that are in another one now.
        if (target / f"{split}.json").is_file():
            logger.warning("%s: removed, the dataset has no such split any more", target / f"{split}.json")
            (target / f"{split}.json").unlink()
    write_spec(target, spec)
    return {split: load_split(target / f"{split}.json", spec, split) for split in images}


def _choose(plan: Plan, options: Options) -> list[Case]:
    """The cases with their splits, cut to the limit."""
    if options.splits is not None:
        cases = _listed(plan, read_split_lists(options.splits), options.splits)
    else:
        cases = _drawn(plan, options)
    if not options.limit:
        return cases
    return [case for split in SPLITS for case in [c for c in cases if c.split == split][: options.limit]]


def _listed(plan: Plan, owner: Mapping[str, str], folder: Path) -> list[Case]:
    """The cases that lists name; all names must be found."""
    paths = [case.image.relative_to(plan.root).as_posix() for case in plan.cases]
    places = find_listed(owner, paths, str(folder))
    if len(places) < len(paths):
        logger.warning("%s: %d of %d images are in no list", folder, len(paths) - len(places), len(paths))
    return [replace(plan.cases[place], split=split) for place, split in zip(places, owner.values(), strict=True)]


def _drawn(plan: Plan, options: Options) -> list[Case]:
    """The cases in the release's splits, and drawn by patient where it has none or a share was asked for."""
    shares = {"val": options.val_share, "test": options.test_share}
    patients, given = [case.patient_id for case in plan.cases], [case.split for case in plan.cases]
    splits = fill_splits(patients, given, shares, options.seed)
    return [replace(case, split=split) for case, split in zip(plan.cases, splits, strict=True)]


Outcome = tuple[dict[str, Any] | None, str]
"""An image in `write_split`'s form, or None and what is wrong with it."""


def _results(
    work: Callable[[Case], Outcome], cases: Sequence[Case], workers: int, name: str
) -> Iterator[tuple[Case, dict[str, Any] | None, str]]:
    """Each case with its outcome, in order."""
    progress = partial(tqdm, total=len(cases), unit="image", desc=name, disable=None)
    if workers <= 0:
        yield from ((case, *work(case)) for case in progress(cases))
        return
    with multiprocessing.Pool(workers) as pool:
        results = pool.imap(work, cases, chunksize=16)
        yield from ((case, *result) for case, result in zip(cases, progress(results), strict=True))


def _annotate(annotate: Annotate, root: Path, options: Options, cache: Path | None, case: Case) -> Outcome:
    """One image; for `verify` and for the cache it is decoded, so that a damaged file is found."""
    try:
        height, width = image_size(case.image)
        try:
            fields = annotate(case.annotation, (height, width))
        except FXError as error:
            raise FXError(f"{case.image}: {error}") from None
        image: dict[str, Any] = {
            "file_name": case.image.relative_to(root).as_posix(),
            "width": width,
            "height": height,
            "patient_id": case.patient_id,
            "study_id": case.study_id,
            "meta": dict(case.meta),
        } | dict(fields)
        if cache is not None:
            (image,) = cache_images([image], image_root=root, cache_root=cache, shorter=options.cache_size)
        elif options.verify:
            read_image(case.image, intensity=image.get("intensity"))
    except FXError as error:
        return None, str(error)
    return image, ""
