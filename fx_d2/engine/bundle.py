"""A model with everything needed to use it: weights, config, and the classes of its heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from safetensors.torch import load_file, save
from torch import Tensor

import fx_d2
from fx_d2.config import add_fx_config
from fx_d2.engine.checkpoint import read_checkpoint, require_match
from fx_d2.engine.checkpoint_files import write_new
from fx_d2.layers.deformable_attention import possible_sampler
from fx_d2.modeling import FoundationX, HeadChange, change_heads
from fx_d2.modeling.heads import head_name
from fx_d2.structures import HEAD_COMPONENTS, DatasetSpec, FXError

FORMAT = "fx_d2_model"
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
"""The two files of an inference checkpoint."""


@dataclass(frozen=True)
class Bundle:
    """The parts of a checkpoint needed for inference, without optimizer state.

    Attributes:
        path: file or folder that it was read from.
        cfg: the config of the run, not frozen.
        specs: dataset rows (`DatasetSpec`) of the heads; their class lists define the heads' outputs.
        untrained: names, as in the checkpoint, of heads that were never trained; their output is meaningless.
        states: "student", "teacher" or both -> state dict.
    """

    path: str
    cfg: CfgNode
    specs: tuple[DatasetSpec, ...]
    untrained: tuple[str, ...]
    states: Mapping[str, Mapping[str, Tensor]]

    def trained_tasks(self, spec: DatasetSpec) -> tuple[str, ...]:
        """The tasks for which a dataset has a trained head."""
        return tuple(task for task in spec.tasks if head_name(spec.name, task) not in self.untrained)

    def build(self, which: str | None = None, device: str = "cpu") -> FoundationX:
        """The model in evaluation mode, with requires_grad False.

        Args:
            which: "student" or "teacher"; None: the student if available, else the teacher.
            device: a torch device.

        Raises:
            FXError: the requested model is missing, or the weights do not match the config.
        """
        which = self.choose(which)
        cfg = self.cfg.clone()
        cfg.MODEL.DEVICE = device
        cfg.MODEL.LOC.SAMPLER = possible_sampler(cfg.MODEL.LOC.SAMPLER, torch.device(device).type)
        cfg.MODEL.TIMM.KWARGS.pop("pretrained", None)  # no download: the weights are loaded below
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg, specs=self.specs)
        require_match(model, self.states[which], self.path)
        model.load_state_dict(self.states[which])
        return model.to(device).requires_grad_(False).eval()

    def choose(self, which: str | None = None) -> str:
        """The name of the requested model; by default the student if available, else the teacher."""
        which = which or next(name for name in ("student", "teacher") if name in self.states)
        if which not in self.states:
            raise FXError(f"{self.path} holds no {which}, only the {' and the '.join(self.states)}")
        return which


def read_bundle(path: str | Path) -> Bundle:
    """Read a training checkpoint, or an inference checkpoint (its folder or one of its two files).

    Raises:
        FXError: the file is missing or damaged, lacks config or classes, or its config is not valid in this version of
            fx_d2.
    """
    path = Path(path)
    if path.is_dir() or path.name == DESCRIPTION or path.suffix == ".safetensors":
        return _read_inference(path if path.is_dir() else path.parent)
    content = read_checkpoint(str(path))
    if "config" not in content or "classes" not in content:
        raise FXError(
            f"checkpoint {path} contains weights without config and class lists, so the classes of its heads are "
            "unknown: use one written by tools/train_net.py or tools/heads.py"
        )
    states = {"student": content["model"]}
    if "teacher" in content:
        states["teacher"] = {key.removeprefix("model."): value for key, value in content["teacher"].items()}
    return _bundle(str(path), content, states)


def write_training_checkpoint(bundle: Bundle, path: str | Path) -> None:
    """Write a .pth that can initialise a run (MODEL.WEIGHTS), but not resume one: it has no optimizer state.

    Raises:
        FXError: see `checkpoint_files.write_new`.
    """
    student = bundle.states[bundle.choose()]
    content: dict[str, Any] = {"model": dict(student), **_description(bundle)}
    if "teacher" in bundle.states:
        content["teacher"] = {f"model.{key}": value for key, value in bundle.states["teacher"].items()}
    write_new(content, Path(path))


def write_inference(bundle: Bundle, folder: str | Path, which: str | None = None) -> None:
    """Write an inference checkpoint of one model: `model.safetensors` and `model.json` in the same folder.

    The json contains "format", "fx_d2" (version), "which", "classes", "untrained", "config" (yaml) and "sha256" of the
    weights. No pickle: neither file can execute code.
    """
    which = bundle.choose(which)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in bundle.states[which].items()}
    (folder / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))  # save_file: for its owner only
    document = {"format": FORMAT, "fx_d2": fx_d2.__version__, "which": which, **_description(bundle)}
    document["sha256"] = _digest(folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(document, indent=1), encoding="utf-8")


def with_heads(bundle: Bundle, specs: Sequence[DatasetSpec]) -> tuple[Bundle, HeadChange]:
    """The same models with exactly the heads of these dataset rows; see `modeling.change_heads`.

    New heads are initialised identically in student and teacher and count as untrained. DATASETS in the config is
    updated: splits of removed rows are dropped, new rows are added as "<name>_train" and "<name>_test".
    """
    states, change = {}, None
    for which in bundle.states:
        model = bundle.build(which)
        again = change_heads(model, bundle.cfg, specs)
        state = model.state_dict()
        if change is not None:
            first = next(iter(states.values()))
            state |= {key: first[key] for key in state if key.startswith(tuple(f"{n}." for n in change.created))}
        change, states[which] = again, state
    assert change is not None, "a bundle has at least one model"
    cfg = bundle.cfg.clone()
    old, new = {spec.name for spec in bundle.specs}, [spec.name for spec in specs]
    for split in ("TRAIN", "TEST"):
        there = [name for name in cfg.DATASETS[split] if name.rpartition("_")[0] in new]
        cfg.DATASETS[split] = (*there, *(f"{name}_{split.lower()}" for name in new if name not in old))
    heads = tuple(f"{part}." for part in HEAD_COMPONENTS.values())
    untrained = {name for name in bundle.untrained if name in change.kept} | set(change.created)
    names = tuple(sorted(name for name in untrained if name.startswith(heads)))
    return replace(bundle, cfg=cfg, specs=tuple(specs), untrained=names, states=states), change


def _description(bundle: Bundle) -> dict[str, Any]:
    """Plain data that describes the weights."""
    return {
        "classes": {spec.name: spec.to_dict() for spec in bundle.specs},
        "untrained": list(bundle.untrained),
        "config": bundle.cfg.dump(),
    }


def _read_inference(folder: Path) -> Bundle:
    description, weights = folder / DESCRIPTION, folder / WEIGHTS
    missing = next((file for file in (description, weights) if not file.is_file()), None)
    if missing is not None:
        raise FXError(f"{missing} does not exist: an inference checkpoint is a folder with {DESCRIPTION} and {WEIGHTS}")
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    needed = {"which", "classes", "untrained", "config", "sha256"}
    if not isinstance(content, dict) or content.get("format") != FORMAT or not needed <= content.keys():
        raise FXError(f"{description} does not describe a model: export the checkpoint again with tools/export.py")
    if _digest(weights) != content["sha256"]:
        raise FXError(f"{weights} is damaged, or not the file that {DESCRIPTION} in the same folder describes")
    try:
        states = {content["which"]: load_file(weights)}
    except safetensors.SafetensorError as error:
        raise FXError(f"{weights} cannot be read ({error}): export it again with tools/export.py") from error
    return _bundle(str(folder), content, states)


def _bundle(path: str, content: Mapping[str, Any], states: Mapping[str, Mapping[str, Tensor]]) -> Bundle:
    specs = tuple(DatasetSpec.from_dict(row, path) for row in content["classes"].values())
    cfg = _config(content["config"], path)
    untrained = content["untrained"] if "untrained" in content else _never_scheduled(cfg, specs)
    return Bundle(path, cfg, specs, tuple(untrained), states)


def _config(text: str, path: str) -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    except (KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise FXError(f"{path}: its config is not valid in fx_d2 {fx_d2.__version__} ({reason})") from error
    return cfg


def _never_scheduled(cfg: CfgNode, specs: Sequence[DatasetSpec]) -> list[str]:
    """Heads that no row of the run's SCHEDULE.STRATEGY trains."""
    rows = [row for row in cfg.SCHEDULE.STRATEGY if HEAD_COMPONENTS[row["task"]] in row["train"]]
    heads = [(spec.name, task) for spec in specs for task in spec.tasks]
    learning = {(name, row["task"]) for name, _ in heads for row in rows if name in row.get("datasets", [name])}
    return [head_name(*head) for head in heads if head not in learning]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
