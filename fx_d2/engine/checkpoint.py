"""Reading and writing checkpoints, loudly."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.common.checkpoint import Checkpointer
from iopath.common.file_io import PathManager
from torch import nn

from fx_d2.modeling import EMATeacher, FoundationX
from fx_d2.modeling.heads import matching_heads
from fx_d2.structures import FXError

logger = logging.getLogger(__name__)


def class_lists(model: FoundationX) -> dict[str, dict[str, Any]]:
    """The rows whose heads the model has, as plain data: what the numbers of a head mean."""
    return {name: spec.to_dict() for name, spec in model.specs.items()}


class FXCheckpointer(Checkpointer):
    """Saves a run's state, and refuses to load what does not fit.

    A file holds "model" (the student), "teacher" (when there is one), optimizer, scheduler, "iteration" (the next
    one), "classes" and "config". Only plain data besides tensors, so that `torch.load(weights_only=True)` reads it.
    """

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Restore everything, exactly.

        Raises:
            FXError: the file is missing, unreadable, or of another architecture or class list.
        """
        checkpoint = read_checkpoint(path)
        model = self.model
        require_match(model, checkpoint["model"], path)
        require_classes(model, checkpoint, path)
        if "teacher" in self.checkpointables and "teacher" not in checkpoint:
            raise FXError(
                f"{path} holds no teacher: train with MODEL.TEACHER.ENABLED False, or start from it anew with "
                "MODEL.WEIGHTS and without --resume"
            )
        model.load_state_dict(checkpoint.pop("model"))
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; a bare state dict is wrapped as {"model": ...}."""
    if not path:
        raise FXError("MODEL.WEIGHTS is empty: give the checkpoint, for example MODEL.WEIGHTS output/model_final.pth")
    manager = PathManager()
    if not manager.isfile(path):
        raise FXError(
            f"checkpoint {path} does not exist: set MODEL.WEIGHTS (with --resume: OUTPUT_DIR) to one that does"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FXError(
            f"checkpoint {path} cannot be read ({reason}): it is damaged, or needs code to unpickle, which is refused"
        ) from error
    if not isinstance(content, Mapping):
        raise FXError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict")
    return dict(content) if "model" in content else {"model": dict(content)}


def compare(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Names that match, are missing in the file, are unexpected there, or differ in shape."""
    own = model.state_dict()
    both = [key for key in own if key in state]
    return {
        "matched": [key for key in both if own[key].shape == state[key].shape],
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "reshaped": [key for key in both if own[key].shape != state[key].shape],
    }


def require_match(model: nn.Module, state: Mapping[str, torch.Tensor], path: str) -> None:
    """FXError unless names and shapes agree exactly."""
    report = compare(model, state)
    wrong = {key: names for key, names in report.items() if key != "matched" and names}
    if wrong:
        detail = "; ".join(f"{len(names)} {key}, first {names[0]}" for key, names in wrong.items())
        raise FXError(f"checkpoint {path} is of another architecture: {detail}. Use the config it was trained with")


def require_classes(model: FoundationX, checkpoint: Mapping[str, Any], path: str) -> None:
    """FXError when the file's heads stand for other classes than the model's."""
    stored = checkpoint.get("classes")
    if stored is None:
        logger.warning("%s does not say which classes its heads stand for; taking the config's word", path)
        return
    for name, row in class_lists(model).items():
        for key in ("cls_classes", "loc_classes", "seg_classes"):
            if name in stored and list(stored[name][key]) != list(row[key]):
                raise FXError(
                    f"checkpoint {path}: dataset {name} was trained with {key} {stored[name][key]}, "
                    f"but is now registered with {row[key]}"
                )


def initialize(model: FoundationX, path: str) -> None:
    """Start from another run's weights: load what matches, print what does not, by component, and each head by name.

    A head of the same name that stands for other classes in the file does not match.

    Raises:
        FXError: nothing matches.
    """
    content = read_checkpoint(path)
    state, heads = matching_heads(model, content["model"], content.get("classes"))
    report = compare(model, state)
    if not report["matched"]:
        raise FXError(f"checkpoint {path} matches no weight of this model: it is of another architecture")
    model.load_state_dict({key: state[key] for key in report["matched"]}, strict=False)
    for kind, names in report.items():
        counts = Counter(name.split(".", 1)[0] for name in names)
        logger.info("weights %s: %s", kind, ", ".join(f"{part} {n}" for part, n in counts.items()) or "none")
    logger.info("heads of %s (created: random weights; dropped: not used)\n%s", path, heads)


def load_models(cfg: CfgNode) -> dict[str, FoundationX]:
    """Student and, where the checkpoint has one, teacher, in evaluation mode, from MODEL.WEIGHTS.

    Returns:
        {"student": model, "teacher": model}; limited to TEST.MODELS.

    Raises:
        FXError: see `FXCheckpointer.load`; or TEST.MODELS asks for nothing that is there.
    """
    checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS)
    model = build_model(cfg)
    require_match(model, checkpoint["model"], cfg.MODEL.WEIGHTS)
    require_classes(model, checkpoint, cfg.MODEL.WEIGHTS)
    model.load_state_dict(checkpoint["model"])
    models = {"student": model.eval()}
    if "teacher" in checkpoint and "teacher" in cfg.TEST.MODELS:
        teacher = EMATeacher(model, cfg.MODEL.TEACHER.MOMENTUM)
        require_match(teacher, checkpoint["teacher"], cfg.MODEL.WEIGHTS)
        teacher.load_state_dict(checkpoint["teacher"])
        models["teacher"] = teacher.model
    chosen = {name: m for name, m in models.items() if name in cfg.TEST.MODELS}
    if not chosen:
        raise FXError(f"TEST.MODELS is {list(cfg.TEST.MODELS)}, but {cfg.MODEL.WEIGHTS} holds {sorted(models)}")
    return chosen
