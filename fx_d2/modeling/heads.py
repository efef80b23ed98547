"""Heads and decoders: building them from dataset rows (`DatasetSpec`), and changing those of an existing model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from fx_d2.modeling.localization import build_decoder, build_encoder
from fx_d2.modeling.segmentation import SegDecoder, segmentation_head
from fx_d2.structures import HEAD_COMPONENTS, TASKS, DatasetSpec, FXError

if TYPE_CHECKING:
    from fx_d2.modeling.meta_arch import FoundationX

_SHARED = {"loc": "loc_encoder", "seg": "seg_decoder"}
"""The shared component between the backbone and the heads of a task."""


@dataclass(frozen=True)
class HeadChange:
    """What happens to heads, by checkpoint prefix such as "loc_decoders.tbx11k".

    Attributes:
        kept: weights unchanged.
        created: randomly initialised.
        dropped: removed.
        partial: some weights taken from a checkpoint, the others randomly initialised.
    """

    kept: tuple[str, ...]
    created: tuple[str, ...]
    dropped: tuple[str, ...]
    partial: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [("kept", self.kept), ("created", self.created), ("dropped", self.dropped)]
        rows += [("partial", self.partial)] * bool(self.partial)
        return "\n".join(f"{title:8s} {', '.join(names) or 'none'}" for title, names in rows)


def build_shared(cfg: CfgNode, task: str, channels: Sequence[int]) -> nn.Module | None:
    """The shared component of a task for a backbone with these channels; None for classification, which has none."""
    if task == "loc":
        return build_encoder(cfg, [channels[i] for i in cfg.MODEL.LOC.STAGES])
    if task == "seg":
        node = cfg.MODEL.SEG
        return SegDecoder(in_channels=channels, dim=node.DIM, bins=node.POOL_BINS, norm=node.NORM, dropout=node.DROPOUT)
    return None


def build_head(cfg: CfgNode, task: str, spec: DatasetSpec, channels: Sequence[int]) -> nn.Module:
    """One dataset's classification head, localization decoder or segmentation head."""
    count = len(spec.classes(task))
    if task == "cls":
        return nn.Linear(channels[-1], count)
    if task == "loc":
        # The encoder adds one coarser level to those of the backbone.
        return build_decoder(cfg, count, len(cfg.MODEL.LOC.STAGES) + 1)
    return segmentation_head(cfg.MODEL.SEG.DIM, count)


def head_name(dataset: str, task: str) -> str:
    """Prefix of a head's weights in a checkpoint: ("tbx11k", "loc") -> "loc_decoders.tbx11k"."""
    return f"{HEAD_COMPONENTS[task]}.{dataset}"


def head_names(specs: Sequence[DatasetSpec]) -> dict[str, tuple[str, ...]]:
    """Checkpoint prefix -> classes of every head the rows need, ordered by task, then by row."""
    return {head_name(spec.name, task): spec.classes(task) for task in TASKS for spec in specs if task in spec.tasks}


def matching_heads(
    model: FoundationX, state: Mapping[str, Tensor], classes: Mapping[str, Mapping[str, Any]] | None
) -> tuple[dict[str, Tensor], HeadChange]:
    """Which of a checkpoint's weights can initialise a model, and what happens to the heads of both.

    Args:
        model: about to be initialised.
        state: the checkpoint's weights, with names as in the model.
        classes: dataset rows of the checkpoint's heads as plain data; None = unknown, names and shapes decide.

    Returns:
        `state` without heads that have the same name but other classes, and the change: "kept" heads take all of their
        weights from the checkpoint, "partial" ones those that fit, "created" ones none; "dropped" ones of the
        checkpoint are not used.
    """
    ours, prefixes = head_names(list(model.specs.values())), tuple(f"{part}." for part in HEAD_COMPONENTS.values())
    theirs = dict.fromkeys(".".join(key.split(".")[:2]) for key in state if key.startswith(prefixes))
    own = model.state_dict()
    kept: list[str] = []
    partial: list[str] = []
    for name, names in ours.items():
        component, dataset = name.split(".")
        task = next(task for task, part in HEAD_COMPONENTS.items() if part == component)
        row = (classes or {}).get(dataset)
        same = row is None or list(row[f"{task}_classes"]) == list(names)
        fits = [key in state and state[key].shape == own[key].shape for key in own if key.startswith(f"{name}.")]
        if not same:
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        elif any(fits):
            (kept if all(fits) else partial).append(name)
    taken = (*kept, *partial)
    created, dropped = (tuple(name for name in names if name not in taken) for names in (ours, theirs))
    return dict(state), HeadChange(tuple(kept), created, dropped, tuple(partial))


def change_heads(model: FoundationX, cfg: CfgNode, specs: Sequence[DatasetSpec]) -> HeadChange:
    """Give a model exactly the heads of these dataset rows, in place; everything else is unchanged.

    A head is kept if the rows contain its dataset with the same classes, in the same order, for the task; a head with
    other classes is replaced. The shared component of a task is created with its first head and removed with its last.
    New modules are on the model's device and in its training mode.

    Args:
        model: changed in place.
        cfg: the config the model was built with; MODEL is read for the sizes of new modules.
        specs: the dataset rows.

    Raises:
        FXError: no rows, two rows with the same name, or segmentation guided by a localization decoder that is missing.
    """
    names = [spec.name for spec in specs]
    if not specs or len(set(names)) != len(names):
        raise FXError(f"a model needs at least one dataset, each listed once, not {names}")
    for spec in specs:
        if model.regions.weight and spec.name in model.loc_decoders and "seg" in spec.tasks and "loc" not in spec.tasks:
            raise FXError(
                f"{spec.name}: its segmentation is guided by its own boxes (MODEL.SEG.REGION) and needs its "
                "localization decoder: keep both or drop both"
            )
    old, new = head_names(list(model.specs.values())), head_names(specs)
    before = [*old, *(part for part in _SHARED.values() if getattr(model, part) is not None)]
    kept, created = [], []
    for task in TASKS:
        bank = getattr(model, HEAD_COMPONENTS[task])
        own = [spec for spec in specs if task in spec.tasks]
        heads = {}
        for spec in own:
            name = head_name(spec.name, task)
            if old.get(name) == new[name]:
                heads[spec.name] = bank[spec.name]
                kept.append(name)
            else:
                heads[spec.name] = _placed(build_head(cfg, task, spec, model.backbone.channels), model)
                created.append(name)
        setattr(model, HEAD_COMPONENTS[task], nn.ModuleDict(heads))
        if task in _SHARED:
            part = _SHARED[task]
            if not own:
                setattr(model, part, None)
            elif getattr(model, part) is None:
                built = build_shared(cfg, task, model.backbone.channels)
                setattr(model, part, _placed(built, model) if built is not None else None)
                created.append(part)
            else:
                kept.append(part)
    model.specs = {spec.name: spec for spec in specs}
    # A replaced head appears as dropped and as created, under the same name.
    return HeadChange(tuple(kept), tuple(created), tuple(name for name in before if name not in kept))


def _placed(part: nn.Module, model: FoundationX) -> nn.Module:
    return part.to(model.device).train(model.training)
