"""What a run trained, from its config: the facts by which tables tell baselines, pretraining and fine-tuning apart."""

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
    """What a run trained, and from which initial weights.

    Attributes:
        slots: pairs (dataset, task), in the order of training.
        passes: passes per cycle.
        heads_only: whether only heads were trained.
        teacher: whether a teacher with a consistency loss was used.
        start: the initial weights in short: "random", "ImageNet" (timm's), or the name of the file or of its run.
        images: training images of a few-shot run; 0 = all.
        seed: SEED; for few-shot runs, the seed with which the images were sampled.
        method: equal for runs that differ only in seeds, paths and evaluation.
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
        """From the config of a training run as plain data.

        Args:
            settings: content of the YAML file; missing keys (configs of older versions) count as unset.
            tasks_of: tasks of the datasets that have no built-in dataset row.
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
        """One dataset, one task, full model, all images: a baseline or a fine-tuning run."""
        return len(self.slots) == 1 and not (self.heads_only or self.images)

    def describe(self) -> str:
        """A short description of the run."""
        if not self.slots:
            return "unknown training"
        if len(self.slots) == 1:
            what = f"{self.slots[0][0]}, {self.slots[0][1]}"
        else:
            datasets = f"{len(self.datasets)} datasets" if len(self.datasets) > 1 else self.datasets[0]
            what = f"{datasets}, {len(self.slots)} dataset-task pairs"
        what += ", heads only" * self.heads_only + (f", {self.images} training images" if self.images else "")
        return f"{what}, {'with' if self.teacher else 'no'} teacher, from {self.start}"


def at(settings: Mapping[str, Any], *path: str) -> Any:
    """The value at a path of keys; None if it does not exist."""
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
    # Names such as model_final.pth identify nothing; the folder of the run does.
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
