"""Which dataset gets what: findings dealt to films, films turned into the labels, boxes and masks of a dataset's row.

A recipe (recipes.py) says, for each kind of finding, which of a dataset's class names it makes positive; everything
else follows from the dataset's row.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fx_d2.data.annotations import write_spec, write_split
from fx_d2.data.table import PRETRAINING
from fx_d2.structures import SPLITS, DatasetSpec, FXError

from .draw import Drawing, draw
from .findings import compatible
from .recipes import RECIPES, Recipe

GENERATOR_VERSION = 1
"""Raise it with every change of the pixels or labels: older output is then made anew."""

STAMP = "synthetic.json"
SOURCE = "synthetic world of fx_d2: drawn phantom films, no patient"
LICENCE = "free: no patient data"
MIN_SIZE = 96


@dataclass(frozen=True)
class Plan:
    """What one film shows: kinds to draw, and which of them faintly (they are labelled -1)."""

    kinds: tuple[str, ...] = ()
    faint: tuple[str, ...] = ()


def plan_split(recipe: Recipe, split: str, count: int, rng: np.random.Generator) -> list[Plan]:
    """Deal findings to the films of one split.

    Half of the films are healthy. The kinds with a class of their own go round, so that each appears when the split
    has room: at most four on a film, usually one or two. `others` go to a third of the films without such a kind.
    """
    normal = count - (count + 1) // 2
    sick = count - normal
    plans = [Plan(tuple(kinds)) for kinds in _deal(list(recipe.names), sick, rng)]
    spare = [Plan() for _ in range(normal)]
    share = 0.5 if recipe.not_normal else 0.34
    others = list(rng.permutation(recipe.others)) if recipe.others else []
    for i in range(round(normal * share) if others else 0):
        spare[i] = Plan((str(others[i % len(others)]),))
    plans += spare
    doubtful = list(rng.permutation(recipe.uncertain)) if recipe.uncertain and split == "train" else []
    for number, i in enumerate(range(0, len(plans), 6) if doubtful else ()):
        kind = str(doubtful[number % len(doubtful)])
        if compatible(list(plans[i].kinds), kind):
            plans[i] = Plan((*plans[i].kinds, kind), (kind,))
    return [plans[int(i)] for i in rng.permutation(count)]


def _deal(kinds: Sequence[str], films: int, rng: np.random.Generator) -> list[list[str]]:
    """Hands of compatible kinds, every kind about equally often."""
    if not films or not kinds:
        return [[] for _ in range(films)]
    size = float(np.clip(len(kinds) / films, 1.0 if len(kinds) == 1 else 1.35, 4))
    wanted = max(films, round(size * films))
    deck: list[str] = []
    while len(deck) < wanted:
        deck += [str(kind) for kind in rng.permutation(kinds)]
    hands: list[list[str]] = [[] for _ in range(films)]
    for number, kind in enumerate(deck[:wanted]):
        order = sorted(range(films), key=lambda i: (len(hands[i]), (i - number) % films))
        free = [i for i in order if len(hands[i]) < 4 and compatible(hands[i], kind)]
        if free:
            hands[free[0]].append(kind)
    return hands


def label_film(plan: Plan, spec: DatasetSpec, recipe: Recipe) -> dict[str, int]:
    """Label 1, 0 or -1 of each class of the row; a faint finding is -1, and so are its parents unless they are 1."""
    positive = {name for kind in plan.kinds if kind not in plan.faint for name in recipe.names.get(kind, ())}
    unsure = {name for kind in plan.faint for name in recipe.names.get(kind, ())} - positive
    if recipe.normal and not set(plan.kinds) - set(recipe.healthy_with):
        positive.add(recipe.normal)
    if recipe.not_normal and plan.kinds and not positive:
        positive.add(recipe.not_normal)
    return {name: 1 if name in positive else -1 if name in unsure else 0 for name in spec.cls_classes}


def annotate(drawing: Drawing, plan: Plan, spec: DatasetSpec, recipe: Recipe) -> dict[str, Any]:
    """Labels, boxes and masks of a film in the words of a dataset's row: the fields of `write_split`'s mapping.

    A faint finding has no box or mask.
    """
    sure = [finding for finding in drawing.findings if finding.kind not in plan.faint]
    row: dict[str, Any] = {"labels": None, "boxes": None, "masks": None}
    if spec.cls_classes:
        row["labels"] = list(label_film(plan, spec, recipe).values())
    if spec.loc_classes:
        row["boxes"] = [
            (name, list(finding.box))
            for finding in sure
            for name in recipe.names.get(finding.kind, ())
            if name in spec.loc_classes
        ]
    if spec.seg_classes:
        empty = np.zeros(drawing.image.shape, bool)
        row["masks"] = [
            np.any([empty, *(f.mask for f in sure if name in recipe.names.get(f.kind, ()))], axis=0)
            for name in spec.seg_classes
        ]
    return row


def make_split(spec: DatasetSpec, folder: Path, split: str, count: int, seed: int, size: int) -> dict[str, int]:
    """Draw one split of one dataset into `folder` and write its annotation file.

    Returns:
        counts: films, healthy (nothing drawn), boxes, masks (non-empty).
    """
    recipe = RECIPES[spec.name]
    key = [seed, zlib.crc32(f"{spec.name}/{split}".encode())]
    rng = np.random.default_rng(key)
    images: list[dict[str, Any]] = []
    counts = {"films": count, "healthy": 0, "boxes": 0, "masks": 0}
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    for number, plan in enumerate(plan_split(recipe, split, count, rng)):
        drawing = draw(plan.kinds, [*key, number], size, recipe.style, plan.faint)
        row = annotate(drawing, plan, spec, recipe)
        if row["labels"] is not None:
            row["labels"] = leave_blank(row["labels"], recipe.blank.get(split, 0.0), rng)
        name = f"{split}/{spec.name}_{split}_{number:05d}.png"
        if not cv2.imwrite(str(folder / "images" / name), drawing.image):
            raise FXError(f"{folder / 'images' / name}: cannot be written; choose another --output")
        height, width = drawing.image.shape
        meta = {"sex": drawing.patient.sex, "age": drawing.patient.age, "view": "PA"}
        images.append(
            {"file_name": name, "width": width, "height": height, "patient_id": f"{split}{number:05d}", "meta": meta}
            | row
        )
        counts["healthy"] += not plan.kinds
        counts["boxes"] += len(row["boxes"] or ())
        counts["masks"] += sum(bool(mask.any()) for mask in row["masks"] or ())
    write_split(
        folder / f"{split}.json",
        spec=spec,
        split=split,
        image_root="images",
        images=images,
        source=SOURCE,
        licence=LICENCE,
    )
    return counts


def leave_blank(labels: list[int], share: float, rng: np.random.Generator) -> list[int | None]:
    """Blank a share of the zeros, as reports that do not mention a finding do."""
    draws = rng.random(len(labels))
    return [None if label == 0 and chance < share else label for label, chance in zip(labels, draws, strict=True)]


def choose(names: Sequence[str] | None) -> list[DatasetSpec]:
    """Rows of the table that have a recipe, in the table's order; None = all of them.

    Raises:
        FXError: a name without row or recipe, or a recipe with a class name that its row lacks.
    """
    known = [spec for spec in PRETRAINING if spec.name in RECIPES]
    strange = sorted(set(names or ()) - {spec.name for spec in known})
    if strange:
        raise FXError(f"--datasets: no recipe for {strange}; choose from {[spec.name for spec in known]}")
    for spec in known:
        recipe = RECIPES[spec.name]
        used = {name for classes in recipe.names.values() for name in classes} | {recipe.normal, recipe.not_normal}
        lost = sorted(used - {"", *spec.cls_classes, *spec.loc_classes, *spec.seg_classes})
        if lost:
            raise FXError(f"synthetic/recipes.py: {spec.name} names {lost}, not in its row; use the row's spelling")
    return [spec for spec in known if names is None or spec.name in names]


def make_world(
    output: Path, *, seed: int, size: int, counts: Mapping[str, int], datasets: Sequence[str] | None = None
) -> dict[str, dict[str, dict[str, int]]] | None:
    """Draw the world into a folder, one sub-folder a dataset; None when it is there already.

    Args:
        output: folder; the stamp file in it says what it was made with. Other parameters: made anew.
        seed: same seed, same bytes.
        size: height of the films in pixels, at least MIN_SIZE.
        counts: films per split; a split with 0 films is not written.
        datasets: names of rows; None = all eleven.

    Returns:
        dataset -> split -> counts (see `make_split`).

    Raises:
        FXError: unknown dataset, film too small, negative count, or a folder that cannot be written.
    """
    specs = choose(datasets)
    if size < MIN_SIZE or seed < 0 or min(counts.values()) < 0 or not any(counts.values()):
        raise FXError(f"--size must be {MIN_SIZE} or more, --seed and the counts 0 or more, one count above 0")
    parameters = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "size": size,
        "counts": dict(counts),
        "datasets": [spec.name for spec in specs],
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        earlier = _stamped(output)
        if earlier == parameters:
            return None
        for name in {spec.name for spec in specs} | set(earlier["datasets"] if earlier else ()):
            _clear(output / name)
        (output / STAMP).unlink(missing_ok=True)
        table = {}
        for spec in specs:
            folder = output / spec.name
            write_spec(folder, spec)
            used = {split: count for split, count in counts.items() if count}
            table[spec.name] = {split: make_split(spec, folder, split, n, seed, size) for split, n in used.items()}
        temporary = output / f".{STAMP}.{os.getpid()}"
        temporary.write_text(json.dumps(parameters, indent=1) + "\n")
        os.replace(temporary, output / STAMP)
    except OSError as error:
        raise FXError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from error
    return table


def _stamped(output: Path) -> Any:
    """Parameters in the stamp file; None when it is missing or broken or does not stand for what lies there."""
    try:
        stamp = json.loads((output / STAMP).read_text())
        used = [split for split, count in stamp["counts"].items() if count]
        whole = all((output / name / f"{split}.json").exists() for name in stamp["datasets"] for split in used)
        return stamp if whole else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _clear(folder: Path) -> None:
    """Remove what an earlier run drew in a dataset's folder; FXError when the dataset there is not synthetic."""
    for split in SPLITS:
        file = folder / f"{split}.json"
        if file.exists() and SOURCE not in file.read_text(encoding="utf-8"):
            raise FXError(f"{file}: holds a dataset that was not drawn; choose another --output")
    for split in SPLITS:
        (folder / f"{split}.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "images" / split, ignore_errors=True)
