"""Reading and writing checkpoints, loudly."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from fx_d2.engine.checkpoint_files import write
from fx_d2.engine.convert import compare, convert_source
from fx_d2.engine.weights import load_file, read_source
from fx_d2.modeling import EMATeacher, FoundationX
from fx_d2.modeling.heads import matching_heads
from fx_d2.structures import SHARED_COMPONENTS, FXError, Phase

logger = logging.getLogger(__name__)


def class_lists(model: FoundationX) -> dict[str, dict[str, Any]]:
    """The rows whose heads the model has, as plain data: what the numbers of a head mean."""
    return {name: spec.to_dict() for name, spec in model.specs.items()}


class FXCheckpointer(Checkpointer):
    """Saves a run's state, and refuses to load what does not fit.

    A file holds only plain data and tensors, so that `torch.load(weights_only=True)` reads it:

    - "model" (the student), "teacher" (when there is one), "optimizer", "scheduler", "scaler": state dicts;
    - "iteration": the last one done, 0-based; "position": the same as {"cycle", "pass", "step", "phase"}, for people;
    - "seed": of the run. With "iteration" and "world_size" it stands for every generator of every process: all
      randomness of a step is drawn from generators seeded anew by (seed, process, iteration), or, for the images, by
      (seed, iteration, place in the batch), so that no generator's state outlives a step;
    - "best": {pattern: {"value", "iteration"}} of SOLVER.CHECKPOINT_BEST; "evaluated": iterations done at the last
      evaluation;
    - "classes": {dataset: its row}, what the heads stand for; "config": yaml; "datasets", "world_size", "versions":
      see `resume.run_record`.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write <folder>/<name>.pth, whole or not at all, on the main process.

        Raises:
            FXError: see `checkpoint_files.write`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        write(content | kwargs, path)
        logger.info("checkpoint %s written", path)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """`restore` of a file; FXError also where it is missing or cannot be read."""
        return self.restore(read_checkpoint(path), path, checkpointables)

    def restore(
        self, checkpoint: dict[str, Any], path: str, checkpointables: list[str] | None = None
    ) -> dict[str, Any]:
        """Restore everything, exactly; gives back what a checkpoint holds besides.

        Args:
            checkpoint: its content, which is emptied of what is restored.
            path: its file, for errors.
            checkpointables: names of what is restored beside the model; None = all.

        Raises:
            FXError: it is of another architecture or class list, or lacks something.
        """
        model = self.model
        require_match(model, checkpoint["model"], path)
        require_classes(model, checkpoint, path)
        wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        missing = [key for key in wanted if key not in checkpoint]
        if missing:
            raise FXError(
                f"{path} holds no {missing[0]}, so that no run can be resumed from it: start anew from its weights, "
                "with MODEL.WEIGHTS and without --resume"
            )
        model.load_state_dict(checkpoint.pop("model"))
        for key in wanted:
            self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; a bare state dict is wrapped as {"model": ...}."""
    if not path:
        raise FXError("MODEL.WEIGHTS is empty: give the checkpoint, for example MODEL.WEIGHTS output/model_final.pth")
    content = load_file(path)
    return dict(content) if "model" in content else {"model": dict(content)}


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


def initialize(model: FoundationX, path: str, which: str = "") -> frozenset[str]:
    """Start from weights of any layout that `modeling.convert` knows: load what matches, log what does not.

    A head of the same name that stands for other classes in the file does not match.

    Args:
        model: gets the weights.
        path: the file.
        which: MODEL.WEIGHTS_FROM.

    Returns:
        The names of the weights that were loaded.

    Raises:
        FXError: the file cannot be read, does not hold that model, or nothing in it matches.
    """
    source = read_source(path)
    conversion = convert_source(source, which or source.default[0], model)
    state, heads = matching_heads(model, conversion.renamed.state, source.classes)
    # Not strict, but not silent: the table names what is missing.
    loaded = {key: state[key] for key in conversion.report["matched"] if key in state}
    model.load_state_dict(loaded, strict=False)
    logger.info("initial weights from %s", conversion.describe())
    logger.info("heads of %s (created: random weights; dropped: not used)\n%s", path, heads)
    return frozenset(loaded)


def begin(cfg: CfgNode, model: FoundationX, phases: Iterable[Phase]) -> None:
    """The first weights of a run: MODEL.WEIGHTS, or what the model was built with.

    Args:
        cfg: MODEL is read.
        model: as built.
        phases: of a cycle.

    Raises:
        FXError: see `initialize`; or the file lacks weights of a shared part that every pass freezes: they would stay
            random to the end. Without a file that is a warning: random features are what was asked for.
    """
    loaded: Collection[str] = ()
    if cfg.MODEL.WEIGHTS:
        loaded = initialize(model, cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_FROM)
    phases = tuple(phases)
    used, learned = ({part for phase in phases for part in getattr(phase, kind)} for kind in ("frozen", "trainable"))
    given = {"backbone"} if cfg.MODEL.TIMM.KWARGS.get("pretrained") else set()
    frozen = tuple(f"{part}." for part in SHARED_COMPONENTS if part in used - learned - given)
    # Scales and biases begin neutral; a trunk's file has none for the norms that are ours.
    random = [
        name
        for name, weight in model.named_parameters()
        if name.startswith(frozen) and weight.ndim > 1 and name not in loaded
    ]
    if not random:
        return
    text = f"no pass of SCHEDULE.STRATEGY trains {random[0].split('.')[0]}"
    if cfg.MODEL.WEIGHTS:
        raise FXError(
            f"{text}, and {cfg.MODEL.WEIGHTS} lacks {len(random)} of its weights, such as {random[0]}: they would stay "
            "random. Train it as well, or start from a checkpoint that has it (MODEL.WEIGHTS)"
        )
    logger.warning("%s, and MODEL.WEIGHTS is empty: it stays random", text)


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
        teacher = EMATeacher(model)
        require_match(teacher, checkpoint["teacher"], cfg.MODEL.WEIGHTS)
        teacher.load_state_dict(checkpoint["teacher"])
        models["teacher"] = teacher.model
    chosen = {name: m for name, m in models.items() if name in cfg.TEST.MODELS}
    if not chosen:
        raise FXError(f"TEST.MODELS is {list(cfg.TEST.MODELS)}, but {cfg.MODEL.WEIGHTS} holds {sorted(models)}")
    return chosen
