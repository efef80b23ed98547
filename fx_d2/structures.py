"""The shared vocabulary of the package: tasks, components, dataset rows (`DatasetSpec`), training phases.

Plain frozen data without torch; every other module may import from here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from detectron2.data import MetadataCatalog

TASKS = ("cls", "loc", "seg")
"""Classification, localization, segmentation, in the order in which a dataset's tasks are visited."""

SPLITS = ("train", "val", "test")

COMPONENTS = ("backbone", "cls_heads", "loc_encoder", "loc_decoders", "seg_decoder", "seg_heads")
"""The components that a phase can train or freeze. `*_heads` and `loc_decoders` hold one module per dataset."""

SHARED_COMPONENTS = ("backbone", "loc_encoder", "seg_decoder")
"""Components shared by all datasets, which the consistency losses keep close to the teacher."""

TASK_COMPONENTS = {
    "cls": ("backbone", "cls_heads"),
    "loc": ("backbone", "loc_encoder", "loc_decoders"),
    "seg": ("backbone", "seg_decoder", "seg_heads"),
}

HEAD_COMPONENTS = {task: parts[-1] for task, parts in TASK_COMPONENTS.items()}
"""The component of each task that holds one module per dataset."""

LABEL_POLICIES = ("ignore", "zeros", "ones", "soft")


class FXError(ValueError):
    """An error in the user's input. Its message names the cause and the fix, and is shown without a traceback."""


@dataclass(frozen=True)
class DatasetSpec:
    """One row of the dataset table; it determines heads, loaders, phases, evaluators and report rows.

    Attributes:
        name: the key of its heads and of its registered splits `{name}_{split}`.
        title: name shown in reports.
        cls_classes: image-level classes, in the order of the head's logits; empty = no classification.
        loc_classes: box classes; class i of the head is `category_id` i + 1 of the annotation file.
        seg_classes: mask channels, each an independent binary mask.
        cls_kind: "multilabel" (sigmoid per class) or "softmax" (one class per image: softmax in evaluation, binary
            cross-entropy in training, as in the reference recipe).
        uncertain: how a label of -1 is treated: "ignore" (unknown), "zeros", "ones", or "soft" (sampled uniformly from
            `soft_range` each time the image is loaded; unknown in evaluation).
        blank: how a missing label (null) is treated: "ignore" (unknown, excluded from loss and metric) or "zeros".
        soft_range: interval for "soft" labels.
        reporting: classes averaged for the headline AUROC; empty = all.
        published: classes that the literature averages under the same name, where they differ from `reporting`;
            reported as a second column. Empty = none.
        flip_pairs: pairs of class names, of any task, swapped by a horizontal flip; a name occurs in at most one pair.
        source: where the data comes from.
        licence: its terms of use.
        expected: published image counts as pairs (split, count); shown next to the actual counts.
    """

    name: str
    title: str
    cls_classes: tuple[str, ...] = ()
    loc_classes: tuple[str, ...] = ()
    seg_classes: tuple[str, ...] = ()
    cls_kind: str = "multilabel"
    uncertain: str = "ignore"
    blank: str = "ignore"
    soft_range: tuple[float, float] = (0.55, 0.85)
    reporting: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    flip_pairs: tuple[tuple[str, str], ...] = ()
    source: str = ""
    licence: str = ""
    expected: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        """Validate the row; raises an FXError that names the dataset and the field."""
        if not self.name.isidentifier():
            raise FXError(
                f"dataset name {self.name!r} must be letters, digits and _, no digit first: checkpoint keys contain it"
            )
        if not self.tasks:
            raise FXError(f"dataset {self.name!r} has no classes: give cls_classes, loc_classes or seg_classes")
        for task in TASKS:
            names: Any = self.classes(task)  # a yaml file may contain anything
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise FXError(f"dataset {self.name!r}: {task}_classes must be a list of names, not {names!r}")
            if len(set(names)) != len(names):
                raise FXError(f"dataset {self.name!r}: {task}_classes holds a name twice: {names}")
        if self.cls_kind not in ("multilabel", "softmax"):
            raise FXError(f"dataset {self.name!r}: cls_kind must be multilabel or softmax, not {self.cls_kind!r}")
        if self.uncertain not in LABEL_POLICIES or self.blank not in ("ignore", "zeros"):
            raise FXError(f"dataset {self.name!r}: uncertain must be one of {LABEL_POLICIES}, blank ignore or zeros")
        known = set(self.cls_classes) | set(self.loc_classes) | set(self.seg_classes)
        for field in ("reporting", "published"):
            if isinstance(getattr(self, field), str) or not set(getattr(self, field)) <= set(self.cls_classes):
                raise FXError(f"dataset {self.name!r}: {field} names classes that are not in cls_classes")
        if len(self.soft_range) != 2 or not 0 <= self.soft_range[0] <= self.soft_range[1] <= 1:
            raise FXError(f"dataset {self.name!r}: soft_range must be two numbers in [0, 1], not {self.soft_range}")
        pairs: list[Any] = [(pair,) if isinstance(pair, str) else pair for pair in self.flip_pairs]
        paired = [name for pair in pairs for name in pair]
        if any(len(pair) != 2 for pair in pairs) or len(set(paired)) != len(paired):
            raise FXError(
                f"dataset {self.name!r}: flip_pairs must be pairs of names, a name in one pair, not {self.flip_pairs}"
            )
        strange = set(paired) - known
        if strange:
            raise FXError(f"dataset {self.name!r}: flip_pairs names unknown classes {sorted(strange)}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks this dataset is annotated for, in the order of TASKS."""
        return tuple(task for task in TASKS if self.classes(task))

    def classes(self, task: str) -> tuple[str, ...]:
        """Class names of one task; empty if the dataset is not annotated for it."""
        return {"cls": self.cls_classes, "loc": self.loc_classes, "seg": self.seg_classes}[task]

    def flip_permutation(self, task: str) -> list[int]:
        """Permutation p of a task's classes: class i becomes class p[i] in the flipped image."""
        names = self.classes(task)
        partner = {a: b for pair in self.flip_pairs for a, b in (pair, pair[::-1])}
        return [names.index(partner[n]) if partner.get(n) in names else i for i, n in enumerate(names)]

    def limited_to(self, tasks: Collection[str], classes: Collection[str] = ()) -> DatasetSpec:
        """The row restricted to some of its tasks and, within these, to some of its classes (none given: all).

        Raises:
            FXError: nothing is left, or only some of the mutually exclusive labels of cls_kind "softmax".
        """
        cls, loc, seg = (
            tuple(name for name in self.classes(task) if task in tasks and (not classes or name in classes))
            for task in TASKS
        )
        if self.cls_kind == "softmax" and cls and cls != self.cls_classes:
            raise FXError(
                f"dataset {self.name!r}: its labels {list(self.cls_classes)} are mutually exclusive, so {list(cls)} "
                "alone cannot be trained"
            )
        return replace(
            self,
            cls_classes=cls,
            loc_classes=loc,
            seg_classes=seg,
            reporting=tuple(name for name in self.reporting if name in cls),
            published=tuple(name for name in self.published if name in cls),
            flip_pairs=tuple(pair for pair in self.flip_pairs if set(pair) <= {*cls, *loc, *seg}),
        )

    @classmethod
    def from_dict(cls, row: dict[str, Any], where: str) -> DatasetSpec:
        """A row from plain data such as a yaml file; `where` names the source in the FXError for an unknown key."""
        known = {f.name for f in fields(cls)}
        if not isinstance(row, dict) or "name" not in row:
            raise FXError(f"{where}: a dataset row is a mapping with at least `name` and one list of classes")
        strange = sorted(set(row) - known)
        if strange:
            raise FXError(f"{where}: unknown keys {strange}; a dataset row has {sorted(known)}")
        frozen = {key: _freeze(value) for key, value in row.items()}
        frozen.setdefault("title", row["name"])
        return cls(**frozen)

    def to_dict(self) -> dict[str, Any]:
        """Plain data (lists, strings, numbers), the inverse of `from_dict`."""
        return {f.name: _thaw(getattr(self, f.name)) for f in fields(self)}


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    return [_thaw(v) for v in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Phase:
    """One pass over one dataset for one task, for example "RSNA, localization, locked".

    Attributes:
        dataset: name of the dataset row (`DatasetSpec`).
        task: one of TASKS.
        trainable: components to train; the task's other components run frozen, all others do not run.
        share: fraction of the annotated training images to use, in (0, 1]; resampled in every cycle.
        max_steps: maximum number of steps; 0 = no limit.
    """

    dataset: str
    task: str
    trainable: tuple[str, ...]
    share: float = 1.0
    max_steps: int = 0

    @property
    def frozen(self) -> tuple[str, ...]:
        """Components that take part in the forward pass but are not trained."""
        return tuple(c for c in TASK_COMPONENTS[self.task] if c not in self.trainable)

    @property
    def kind(self) -> tuple[str, tuple[str, ...]]:
        """(task, trainable components): passes of the same kind do the same work in a step."""
        return self.task, tuple(sorted(self.trainable))

    @property
    def mode(self) -> str:
        """The string "lock" if a shared component of the task is frozen, else "release"."""
        return "lock" if any(c in SHARED_COMPONENTS for c in self.frozen) else "release"

    def __str__(self) -> str:
        return f"{self.dataset}/{self.task}/{self.mode}"


def spec_of(registered: str) -> DatasetSpec:
    """The dataset row of a registered split such as "jsrt_train"; FXError if it is not registered."""
    metadata = MetadataCatalog.get(registered) if registered in MetadataCatalog.list() else None
    spec = metadata.get("spec") if metadata is not None else None
    if spec is None:
        raise FXError(f"dataset split {registered!r} is not registered: call fx_d2.data.register_datasets(cfg) first")
    return spec


def specs_of(registered: Iterable[str]) -> tuple[DatasetSpec, ...]:
    """The distinct dataset rows of registered splits, in order of first appearance."""
    return tuple({spec.name: spec for spec in map(spec_of, registered)}.values())
