"""Number of steps of each kind in a cycle over the eleven datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode

from fx_d2.data import images_in_pass, steps_in_pass
from fx_d2.engine import build_cycle
from fx_d2.structures import DatasetSpec, Phase


def train_images(spec: DatasetSpec) -> int:
    """Published number of training images of a dataset row; all of its images if the release has no splits."""
    counts = dict(spec.expected)
    return counts.get("train", counts.get("total", 0))


def label(phase: Phase) -> str:
    """The kind of a step, such as "loc/lock"."""
    return f"{phase.task}/{phase.mode}"


def passes(specs: Sequence[DatasetSpec], schedule: CfgNode) -> Iterator[tuple[Phase, DatasetSpec]]:
    """All passes of a cycle, unordered, from SCHEDULE.STRATEGY and REPEAT; ITERS_PER_PASS is ignored."""
    rows = {spec.name: spec for spec in specs}
    for phase in build_cycle(specs, schedule.STRATEGY):
        for _ in range(schedule.REPEAT.get(phase.dataset, 1)):
            yield phase, rows[phase.dataset]


def cycle_images(specs: Sequence[DatasetSpec], schedule: CfgNode, batch: int) -> dict[str, int]:
    """Images per cycle by kind of step, assuming every image is annotated for all tasks of its dataset."""
    found: Counter[str] = Counter()
    for phase, spec in passes(specs, schedule):
        images = images_in_pass(train_images(spec), phase.share)
        found[label(phase)] += min(images, phase.max_steps * batch or images)
    return dict(found)


def equal_slots(specs: Sequence[DatasetSpec], schedule: CfgNode) -> dict[str, float]:
    """The same with one image per dataset: each pass counts as its share."""
    found: Counter[str] = Counter()
    for phase, _ in passes(specs, schedule):
        found[label(phase)] += phase.share
    return dict(found)


def pass_steps(phase: Phase, spec: DatasetSpec, batch: int) -> int:
    """Steps of a pass, as in the schedule."""
    steps = steps_in_pass(train_images(spec), phase.share, batch)
    return min(steps, phase.max_steps or steps)
