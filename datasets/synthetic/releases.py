"""The drawn world as public releases: each dataset's films in the layout in which the real ones are downloaded."""

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
"""Stands in a drawn release and says what it was drawn with."""

Counts = dict[str, dict[str, int]]
"""Split -> number of films, of healthy ones (nothing drawn) and of findings that have a class."""


def make_releases(
    output: Path, *, seed: int, size: int, counts: Mapping[str, int], datasets: Sequence[str] | None = None
) -> dict[str, Counts | None]:
    """Draw releases into `output`, one sub-folder a dataset, each complete or not there at all.

    Args:
        output: folder of the releases.
        seed: same seed, same bytes.
        size: height of the films in pixels, at least MIN_SIZE.
        counts: films per split; a release without official splits holds them all in one.
        datasets: names of rows; None = all that can be drawn.

    Returns:
        dataset -> counts; None for one that lies there already, drawn with the same parameters. Others are replaced.

    Raises:
        FXError: unknown dataset, film too small, negative count, a folder that cannot be written or holds a release
            that was not drawn.
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
    """Rows of the table that have recipe and layout, in the table's order; FXError for a name that is none of them."""
    known = [spec for spec in BY_NAME.values() if spec.name in RECIPES and has_layout(spec.name)]
    strange = sorted(set(names or ()) - {spec.name for spec in known})
    if strange:
        raise FXError(f"--datasets: no recipe and layout for {strange}; choose from {[spec.name for spec in known]}")
    return [spec for spec in known if names is None or spec.name in names]


def draw_films(spec: DatasetSpec, *, seed: int, size: int, counts: Mapping[str, int]) -> Iterator[Film]:
    """The films of one dataset, split after split; every fourth film is the second one of the patient before."""
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
    """Draw one release beside its folder, then put it in its place."""
    if folder.exists():
        text = (folder / STAMP).read_text(encoding="utf-8") if (folder / STAMP).is_file() else ""
        if not text:
            raise FXError(f"{folder}: holds something that was not drawn; choose another --output")
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
    """The same films, counted into the table on the way."""
    for film in films:
        row = table.setdefault(film.split, {"films": 0, "healthy": 0, "findings": 0})
        row["films"] += 1
        row["healthy"] += not film.kinds
        row["findings"] += len(film.instances)
        yield film
