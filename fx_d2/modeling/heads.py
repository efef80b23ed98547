"""Heads and decoders by name: building them from the rows, and changing those of a model that is there."""

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
"""The shared part that stands between trunk and heads of a task."""


@dataclass(frozen=True)
class HeadChange:
    """What `change_heads` did, each part by its name in the checkpoint, such as "loc_decoders.tbx11k".

    Attributes:
        kept: bit by bit as before.
        created: with new random weights.
        dropped: gone.
    """

    kept: tuple[str, ...]
    created: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        rows = (("kept", self.kept), ("created", self.created), ("dropped", self.dropped))
        return "\n".join(f"{title:8s} {', '.join(names) or 'none'}" for title, names in rows)


def build_shared(cfg: CfgNode, task: str, channels: Sequence[int]) -> nn.Module | None:
    """The shared part of a task behind a trunk with these channels; None for classification, which has none."""
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
        # The encoder adds one coarser level to those of the trunk.
        return build_decoder(cfg, count, len(cfg.MODEL.LOC.STAGES) + 1)
    return segmentation_head(cfg.MODEL.SEG.DIM, count)


def head_name(dataset: str, task: str) -> str:
    """Prefix of a head's weights in a checkpoint: ("tbx11k", "loc") -> "loc_decoders.tbx11k"."""
    return f"{HEAD_COMPONENTS[task]}.{dataset}"


def head_names(specs: Sequence[DatasetSpec]) -> dict[str, tuple[str, ...]]:
    """The heads that rows need and the classes they stand for, in order of tasks, then of rows."""
    return {head_name(spec.name, task): spec.classes(task) for task in TASKS for spec in specs if task in spec.tasks}


def matching_heads(
    model: FoundationX, state: Mapping[str, Tensor], classes: Mapping[str, Mapping[str, Any]] | None
) -> tuple[dict[str, Tensor], HeadChange]:
    """What of a file's weights a model may start from, and what becomes of the heads on either side.

    Args:
        model: about to be initialized.
        state: the file's weights, with names as in the model.
        classes: the rows behind the file's heads as plain data; None = unknown, then names and shapes decide.

    Returns:
        `state` without the heads of the model's name that stand for other classes there, and the change: "kept" heads
        take the file's weights, "created" ones stay random, "dropped" ones of the file are not used.
    """
    ours, prefixes = head_names(list(model.specs.values())), tuple(f"{part}." for part in HEAD_COMPONENTS.values())
    theirs = dict.fromkeys(".".join(key.split(".")[:2]) for key in state if key.startswith(prefixes))
    own, kept = model.state_dict(), []
    for name, names in ours.items():
        component, dataset = name.split(".")
        task = next(task for task, part in HEAD_COMPONENTS.items() if part == component)
        row = (classes or {}).get(dataset)
        same = row is None or list(row[f"{task}_classes"]) == list(names)
        fits = [key in state and state[key].shape == own[key].shape for key in own if key.startswith(f"{name}.")]
        if same and all(fits):
            kept.append(name)
        elif not same:
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
    created = tuple(name for name in ours if name not in kept)
    return dict(state), HeadChange(tuple(kept), created, tuple(name for name in theirs if name not in kept))


def change_heads(model: FoundationX, cfg: CfgNode, specs: Sequence[DatasetSpec]) -> HeadChange:
    """Give a model exactly the heads of these rows, in place; everything else stays as it is.

    A head is kept when its dataset is among the rows with the same classes for the task, in the same order; a head
    of other classes is replaced. The shared part of a task comes and goes with the task's first and last head. New
    weights are on the model's device and in the state of its training flag.

    Args:
        model: changed.
        cfg: MODEL is read for the sizes of new parts; it must be the config that the model was built with.
        specs: the rows; two of one name are an FXError, and so are none, and guided segmentation without its decoder.
    """
    names = [spec.name for spec in specs]
    if not specs or len(set(names)) != len(names):
        raise FXError(f"a model needs at least one dataset, and each one once, not {names}")
    for spec in specs:
        if model.regions.weight and spec.name in model.loc_decoders and "seg" in spec.tasks and "loc" not in spec.tasks:
            raise FXError(
                f"{spec.name}: its segmentation is guided by its own boxes (MODEL.SEG.REGION) and needs its "
                "localization decoder: keep both, or drop both"
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
    # A replaced head was dropped under the name under which it was created.
    return HeadChange(tuple(kept), tuple(created), tuple(name for name in before if name not in kept))


def _placed(part: nn.Module, model: FoundationX) -> nn.Module:
    return part.to(model.device).train(model.training)
