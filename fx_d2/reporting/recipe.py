"""What a run did, from its config: the facts by which tables know a baseline from a pretraining or a fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fx_d2.data.table import BY_NAME
from fx_d2.structures import HEAD_COMPONENTS, TASKS

_VOLATILE = (
    ("SEED",),
    ("OUTPUT_DIR",),
    ("TEST",),
    ("DATALOADER",),
    ("DATASETS", "ROOT"),
    ("DATASETS", "TEST"),
    ("DATASETS", "FEW_SHOT"),
    ("SOLVER", "CHECKPOINT_CYCLES"),
    ("SOLVER", "CHECKPOINT_STEPS"),
    ("SOLVER", "CHECKPOINT_MINUTES"),
    ("SOLVER", "CHECKPOINTS_TO_KEEP"),
    ("SOLVER", "CHECKPOINT_KEEP_CYCLES"),
    ("SOLVER", "CHECKPOINT_BEST"),
)
"""Keys that may differ between repetitions of one method."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run trained, and from where.

    Attributes:
        slots: pairs (dataset, task), in the order of training.
        passes: passes of a cycle.
        heads_only: whether nothing but heads learned.
        teacher: whether there was a teacher.
        start: the initial weights in a word: "random", "ImageNet" (timm's), or the file's or its run's name.
        images: training images of a few-shot run, 0 = all.
        seed: SEED; of a few-shot run the seed of its choice of images.
        method: equal for runs that differ in nothing but seeds, places and evaluation.
    """

    slots: tuple[tuple[str, str], ...]
    passes: int
    heads_only: bool
    teacher: bool
    start: str
    images: int
    seed: int
    method: str

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tasks_of: Mapping[str, Collection[str]]) -> Recipe:
        """From a training's config as plain data.

        Args:
            settings: the yaml file's content; keys that it lacks have the values of an older version.
            tasks_of: tasks of datasets that are not in the table of datasets.
        """
        strategy = at(settings, "SCHEDULE", "STRATEGY") or []
        datasets = [name.rpartition("_")[0] for name in at(settings, "DATASETS", "TRAIN") or []]
        used = at(settings, "DATASETS", "TASKS") or TASKS
        repeat = at(settings, "SCHEDULE", "REPEAT") or {}
        rows = [
            (name, row)
            for name in datasets
            for row in strategy
            if row["task"] in used and row["task"] in _tasks(name, tasks_of) and name in row.get("datasets", [name])
        ]
        slots = tuple(dict.fromkeys((name, row["task"]) for name, row in rows))
        learning = {part for _, row in rows for part in row["train"]}
        teacher = bool(at(settings, "MODEL", "TEACHER", "ENABLED")) and at(settings, "MODEL", "TEACHER", "CONSISTENCY")
        few = at(settings, "DATASETS", "FEW_SHOT") or {}
        images = int(few.get("IMAGES") or 0)
        return cls(
            slots=slots,
            passes=sum(row.get("passes", 1) * repeat.get(name, 1) for name, row in rows),
            heads_only=bool(learning) and learning <= set(HEAD_COMPONENTS.values()),
            teacher=bool(teacher),
            start=_start(settings),
            images=images,
            seed=int((few.get("SEED") if images else at(settings, "SEED")) or 0),
            method=_method(settings),
        )

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets trained on."""
        return tuple(dict.fromkeys(dataset for dataset, _ in self.slots))

    @property
    def single(self) -> bool:
        """One dataset, one task, everything learns, all images: a baseline or a fine-tuning."""
        return len(self.slots) == 1 and not (self.heads_only or self.images)

    def describe(self) -> str:
        """The run in a few words."""
        if not self.slots:
            return "unknown training"
        if len(self.slots) == 1:
            what = f"{self.slots[0][0]}, {self.slots[0][1]}"
        else:
            datasets = f"{len(self.datasets)} datasets" if len(self.datasets) > 1 else self.datasets[0]
            what = f"{datasets}, {len(self.slots)} pairs of dataset and task"
        what += ", heads only" * self.heads_only + (f", {self.images} training images" if self.images else "")
        return f"{what}, {'with' if self.teacher else 'no'} teacher, from {self.start}"


def at(settings: Mapping[str, Any], *path: str) -> Any:
    """The value at a path of keys, or None."""
    value: Any = settings
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _tasks(name: str, tasks_of: Mapping[str, Collection[str]]) -> Collection[str]:
    return BY_NAME[name].tasks if name in BY_NAME else tasks_of.get(name, TASKS)


def _start(settings: Mapping[str, Any]) -> str:
    weights = at(settings, "MODEL", "WEIGHTS")
    if not weights:
        return "ImageNet" if at(settings, "MODEL", "TIMM", "KWARGS", "pretrained") else "random"
    path = Path(weights)
    # model_final.pth and its like say nothing; the run's folder does.
    name = path.parent.name if path.stem.startswith("model_") and path.parent.name else path.stem
    which = at(settings, "MODEL", "WEIGHTS_FROM")
    return f"{name} ({which})" if which else name


def _method(settings: Mapping[str, Any]) -> str:
    kept = json.loads(json.dumps(settings, default=str))
    for *path, key in _VOLATILE:
        node = at(kept, *path)
        if isinstance(node, dict):
            node.pop(key, None)
    return json.dumps(kept, sort_keys=True)
