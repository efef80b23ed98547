"""Reading and writing checkpoints, with an error for everything that does not match."""

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
    """The dataset rows (`DatasetSpec`) of the model's heads as plain data; they define the heads' outputs."""
    return {name: spec.to_dict() for name, spec in model.specs.items()}


class FXCheckpointer(Checkpointer):
    """Saves the state of a run, and refuses to load a checkpoint that does not match.

    A file contains only plain data and tensors, readable with `torch.load(weights_only=True)`:

    - "model" (the student), "teacher" (if enabled), "optimizer", "scheduler", "scaler": state dicts;
    - "iteration": the last completed one, 0-based; "position": the same in readable form, {"cycle", "pass", "step",
      "phase"};
    - "seed": of the run. Together with "iteration" and "world_size" it replaces the state of all random generators: in
      every step they are re-seeded from (seed, rank, iteration), and those of image augmentation from (seed,
      iteration, index in the batch), so no generator state outlives a step;
    - "best": {pattern: {"value", "iteration"}} of SOLVER.CHECKPOINT_BEST; "evaluated": iterations completed at the last
      evaluation;
    - "classes": {dataset: its row}, the classes of the heads; "config": yaml; "datasets", "world_size", "versions":
      see `resume.run_record`.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write <folder>/<name>.pth atomically, on the main process.

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
        """`restore` from a file; also raises an FXError if it is missing or unreadable."""
        return self.restore(read_checkpoint(path), path, checkpointables)

    def restore(
        self, checkpoint: dict[str, Any], path: str, checkpointables: list[str] | None = None
    ) -> dict[str, Any]:
        """Restore the model and the checkpointables, with exact match; returns the checkpoint's other entries.

        Args:
            checkpoint: content of the file; restored entries are removed from it.
            path: the file, for error messages.
            checkpointables: names of what to restore in addition to the model; None = all.

        Raises:
            FXError: architecture or class lists differ, or an entry is missing.
        """
        model = self.model
        require_match(model, checkpoint["model"], path)
        require_classes(model, checkpoint, path)
        wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        missing = [key for key in wanted if key not in checkpoint]
        if missing:
            raise FXError(
                f"{path} contains no {missing[0]}, so no run can be resumed from it: start a new run from its weights, "
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
    """FXError unless names and shapes match exactly."""
    report = compare(model, state)
    wrong = {key: names for key, names in report.items() if key != "matched" and names}
    if wrong:
        detail = "; ".join(f"{len(names)} {key}, first {names[0]}" for key, names in wrong.items())
        raise FXError(f"checkpoint {path} is of another architecture: {detail}. Use the config it was trained with")


def require_classes(model: FoundationX, checkpoint: Mapping[str, Any], path: str) -> None:
    """FXError if the classes of the file's heads differ from those of the model."""
    stored = checkpoint.get("classes")
    if stored is None:
        logger.warning("%s does not list the classes of its heads; assuming those of the config", path)
        return
    for name, row in class_lists(model).items():
        for key in ("cls_classes", "loc_classes", "seg_classes"):
            if name in stored and list(stored[name][key]) != list(row[key]):
                raise FXError(
                    f"checkpoint {path}: dataset {name} was trained with {key} {stored[name][key]}, "
                    f"but is now registered with {row[key]}"
                )


def initialize(model: FoundationX, path: str, which: str = "") -> frozenset[str]:
    """Initialise from weights in any layout known to `modeling.convert`: load what matches, log what does not.

    A head of the same name but with other classes in the file does not match.

    Args:
        model: receives the weights.
        path: the file.
        which: MODEL.WEIGHTS_FROM.

    Returns:
        The names of the weights that were loaded.

    Raises:
        FXError: the file cannot be read, lacks the requested model, or contains no matching weight.
    """
    source = read_source(path)
    conversion = convert_source(source, which or source.default[0], model)
    state, heads = matching_heads(model, conversion.renamed.state, source.classes)
    # strict=False, but not silent: the logged table lists what is missing.
    loaded = {key: state[key] for key in conversion.report["matched"] if key in state}
    model.load_state_dict(loaded, strict=False)
    logger.info("initial weights from %s", conversion.describe())
    logger.info("heads of %s (created, and partial in part: random; dropped: not used)\n%s", path, heads)
    return frozenset(loaded)


def begin(cfg: CfgNode, model: FoundationX, phases: Iterable[Phase]) -> None:
    """Initialise the weights of a new run: from MODEL.WEIGHTS if set, else the model is left as built.

    Args:
        cfg: MODEL is read.
        model: as built.
        phases: of a cycle.

    Raises:
        FXError: see `initialize`; or the file lacks weights of a shared component that every pass freezes, so they
            would remain random throughout. Without MODEL.WEIGHTS this is only a warning.
    """
    loaded: Collection[str] = ()
    if cfg.MODEL.WEIGHTS:
        loaded = initialize(model, cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_FROM)
    phases = tuple(phases)
    used, learned = ({part for phase in phases for part in getattr(phase, kind)} for kind in ("frozen", "trainable"))
    given = {"backbone"} if cfg.MODEL.TIMM.KWARGS.get("pretrained") else set()
    frozen = tuple(f"{part}." for part in SHARED_COMPONENTS if part in used - learned - given)
    # Scales and biases have a neutral initialisation; a backbone checkpoint has none for the norms we add.
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
            f"{text}, and {cfg.MODEL.WEIGHTS} lacks {len(random)} of its weights, such as {random[0]}: they would "
            "remain random. Train this component, or use a checkpoint that contains it (MODEL.WEIGHTS)"
        )
    logger.warning("%s, and MODEL.WEIGHTS is empty: it remains random", text)


def load_models(cfg: CfgNode) -> dict[str, FoundationX]:
    """Load the student and, if the checkpoint has one, the teacher from MODEL.WEIGHTS, in evaluation mode.

    Returns:
        {"student": model, "teacher": model}, restricted to TEST.MODELS.

    Raises:
        FXError: the file cannot be read, does not match the config, or contains none of TEST.MODELS.
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
