"""Assign findings to the images of a dataset, and derive the labels of its row from them.

A recipe (recipes.py) maps each kind of finding to the classes that it makes positive; everything else follows from the
dataset row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fx_d2.structures import DatasetSpec

from .findings import compatible
from .recipes import Recipe

GENERATOR_VERSION = 1
"""Increment it with every change of pixels or labels, so that older output is regenerated."""

MIN_SIZE = 96


@dataclass(frozen=True)
class Plan:
    """The findings of one image: kinds to draw, and those of them to draw faintly (labelled -1)."""

    kinds: tuple[str, ...] = ()
    faint: tuple[str, ...] = ()


def plan_split(recipe: Recipe, split: str, count: int, rng: np.random.Generator) -> list[Plan]:
    """Assign findings to the images of one split.

    Half of the images get kinds with a class of their own, about equally often each, at most four per image and usually
    one or two. Of the other half, a third get one of `others` (half of them if the recipe has `not_normal`).
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
    """Compatible kinds for each image, every kind about equally often."""
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
    """Label each class of the row 1, 0 or -1; a faint finding is -1, and so are its parents unless they are 1."""
    positive = {name for kind in plan.kinds if kind not in plan.faint for name in recipe.names.get(kind, ())}
    unsure = {name for kind in plan.faint for name in recipe.names.get(kind, ())} - positive
    if recipe.normal and not set(plan.kinds) - set(recipe.healthy_with):
        positive.add(recipe.normal)
    if recipe.not_normal and plan.kinds and not positive:
        positive.add(recipe.not_normal)
    return {name: 1 if name in positive else -1 if name in unsure else 0 for name in spec.cls_classes}


def leave_blank(labels: list[int], share: float, rng: np.random.Generator) -> list[int | None]:
    """Set a random fraction of the zeros to None, like findings that a report does not mention."""
    draws = rng.random(len(labels))
    return [None if label == 0 and chance < share else label for label, chance in zip(labels, draws, strict=True)]
