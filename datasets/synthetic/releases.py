"""Synthetic datasets as public releases: the images of each dataset in the layout of the real download."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fx_d2.data.table import BY_NAME
from fx_d2.structures import SPLITS, DatasetSpec, FXError

from .draw import draw
from .film_record import Film, Instance
from .layouts import has_layout, writer
from .recipes import RECIPES
from .world import GENERATOR_VERSION, MIN_SIZE, label_film, leave_blank, plan_split

STAMP = "synthetic.json"
"""File in a synthetic release that records its parameters."""

Counts = dict[str, dict[str, int]]
"""Split -> number of images, of healthy images (no findings) and of findings that have a class."""


def make_releases(
    output: Path, *, seed: int, size: int, counts: Mapping[str, int], datasets: Sequence[str] | None = None
) -> dict[str, Counts | None]:
    """Generate releases in `output`, one subfolder per dataset, each written atomically.

    Args:
        output: folder of the releases.
        seed: same seed, same bytes.
        size: image height in pixels, at least MIN_SIZE.
        counts: images per split; a release without official splits has them all in one.
        datasets: dataset names; None = all that can be generated.

    Returns:
        dataset -> counts; None for one that already exists with the same parameters. Others are replaced.

    Raises:
        FXError: an unknown dataset, too small an image size, a negative count, or a folder that cannot be written or
            contains something other than a synthetic release.
    """
    specs = drawable(datasets)
    if size < MIN_SIZE or seed < 0 or min(counts.values()) < 0 or not any(counts.values()):
        raise FXError(f"--size must be {MIN_SIZE} or more, --seed and the counts 0 or more, one count above 0")
    stamp = {"generator_version": GENERATOR_VERSION, "seed": seed, "size": size, "counts": dict(counts)}
    try:
        return {spec.name: _make_release(output / spec.name, spec, stamp) for spec in specs}
    except OSError as error:
        raise FXError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from error


def drawable(names: Sequence[str] | None = None) -> list[DatasetSpec]:
    """Dataset rows with a recipe and a layout, in table order; FXError for any other name."""
    known = [spec for spec in BY_NAME.values() if spec.name in RECIPES and has_layout(spec.name)]
    strange = sorted(set(names or ()) - {spec.name for spec in known})
    if strange:
        raise FXError(f"--datasets: no recipe and layout for {strange}; choose from {[spec.name for spec in known]}")
    return [spec for spec in known if names is None or spec.name in names]


def draw_films(spec: DatasetSpec, *, seed: int, size: int, counts: Mapping[str, int]) -> Iterator[Film]:
    """Generate the images of one dataset, split by split; every fourth is a second image of the previous patient."""
    recipe = RECIPES[spec.name]
    number = patient = 0
    for split in SPLITS:
        key = [seed, zlib.crc32(f"{spec.name}/{split}".encode())]
        rng = np.random.default_rng(key)
        for place, plan in enumerate(plan_split(recipe, split, counts.get(split, 0), rng)):
            follow_up = int(place % 4 == 3)
            patient += not follow_up
            body = [*key, patient]
            drawing = draw(plan.kinds, [*key, place], size, recipe.style, plan.faint, patient_seed=body)
            labels = label_film(plan, spec, recipe)
            told = leave_blank([*labels.values()], recipe.blank.get(split, 0.0), rng)
            yield Film(
                dataset=spec.name,
                split=split,
                number=number,
                patient=patient,
                follow_up=follow_up,
                image=drawing.image,
                sex=drawing.patient.sex,
                age=drawing.patient.age,
                kinds=tuple(kind for kind in plan.kinds if kind not in plan.faint),
                labels=dict(zip(labels, told, strict=True)),
                instances=tuple(
                    Instance(finding.kind, name, finding.box, finding.mask)
                    for finding in drawing.findings
                    if finding.kind not in plan.faint
                    for name in recipe.names.get(finding.kind, ())
                ),
                structures=drawing.structures,
            )
            number += 1


def _make_release(folder: Path, spec: DatasetSpec, stamp: Mapping[str, Any]) -> Counts | None:
    """Generate one release in a temporary folder, then move it into place."""
    if folder.exists():
        text = (folder / STAMP).read_text(encoding="utf-8") if (folder / STAMP).is_file() else ""
        if not text:
            raise FXError(f"{folder}: is not a synthetic release; choose another --output")
        if json.loads(text) == stamp:
            return None
    table: Counts = {}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        films = draw_films(spec, seed=stamp["seed"], size=stamp["size"], counts=stamp["counts"])
        writer(spec.name)(temporary, _counted(films, table))
        (temporary / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return table


def _counted(films: Iterator[Film], table: Counts) -> Iterator[Film]:
    """Pass the images through and count them in the table."""
    for film in films:
        row = table.setdefault(film.split, {"films": 0, "healthy": 0, "findings": 0})
        row["films"] += 1
        row["healthy"] += not film.kinds
        row["findings"] += len(film.instances)
        yield film
