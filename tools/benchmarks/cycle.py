"""How often each kind of step occurs in a cycle over the eleven datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fx_d2.data import images_in_pass, steps_in_pass
from fx_d2.engine import build_cycle
from fx_d2.structures import DatasetSpec, Phase


def train_images(spec: DatasetSpec) -> int:
    """Published training images of a row; where the release has no splits, all of its images."""
    counts = dict(spec.expected)
    return counts.get("train", counts.get("total", 0))


def label(phase: Phase) -> str:
    """The kind of a step, such as "loc/lock"."""
    return f"{phase.task}/{phase.mode}"


def cycle_images(specs: Sequence[DatasetSpec], strategy: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Images of one cycle by kind of step, each image counted as annotated for all tasks of its dataset."""
    rows = {spec.name: spec for spec in specs}
    found: Counter[str] = Counter()
    for phase in build_cycle(specs, strategy):
        found[label(phase)] += images_in_pass(train_images(rows[phase.dataset]), phase.share)
    return dict(found)


def equal_slots(specs: Sequence[DatasetSpec], strategy: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The same if every dataset had one image: a pass then counts as its share."""
    found: Counter[str] = Counter()
    for phase in build_cycle(specs, strategy):
        found[label(phase)] += phase.share
    return dict(found)


def cycle_steps(specs: Sequence[DatasetSpec], strategy: Sequence[Mapping[str, Any]], batch: int) -> dict[str, int]:
    """Steps of one cycle by kind, as the schedule has them."""
    rows = {spec.name: spec for spec in specs}
    found: Counter[str] = Counter()
    for phase in build_cycle(specs, strategy):
        found[label(phase)] += steps_in_pass(train_images(rows[phase.dataset]), phase.share, batch)
    return dict(found)
