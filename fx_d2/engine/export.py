"""Export of a model as a function of tensors, usable without fx_d2: torch.export and ONNX."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fx_d2.layers.boxes import to_corners
from fx_d2.modeling import FoundationX
from fx_d2.modeling.backbone import normalize_images
from fx_d2.structures import FXError

OPSET = 20
"""ONNX opset. GridSample, which deformable attention needs, was added in 16 and revised in 20."""


class TensorModel(nn.Module):
    """Backbone, shared components and the requested heads, from grey images to probabilities.

    Args:
        model: in evaluation mode.
        wanted: dataset -> tasks.
    """

    def __init__(self, model: FoundationX, wanted: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.model, self.wanted = model, {name: tuple(tasks) for name, tasks in wanted.items()}

    @property
    def names(self) -> list[str]:
        """Names of the outputs, in order."""
        parts = {"cls": ("cls",), "loc": ("loc_scores", "loc_boxes"), "seg": ("seg",)}
        return [f"{name}/{part}" for name, tasks in self.wanted.items() for task in tasks for part in parts[task]]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map grey images float32 (B, 1, H, W) in [0, 255], resized to the network's input size, to `names`.

        Returns:
            Float32 tensors: "<dataset>/cls" (B, C) probabilities; "<dataset>/loc_scores" (B, Q, K) in [0, 1] and
            "<dataset>/loc_boxes" (B, Q, 4) as (x1, y1, x2, y2) relative to the image size, not clipped;
            "<dataset>/seg" (B, C, H, W) probabilities.
        """
        model = self.model
        features = model.backbone(normalize_images(images, model.pixel_mean, model.pixel_std))
        found = model.run_heads(features, None, self.wanted)
        outputs: list[Tensor] = []
        for name, tasks in self.wanted.items():
            for task in tasks:
                out = found[name][task]
                if task == "loc":
                    columns = model.box_columns(name)
                    logits = out.logits[-1][..., columns.start : columns.stop]
                    outputs += [logits.sigmoid(), to_corners(out.boxes[-1])]
                elif task == "seg":
                    size = images.shape[-2:]
                    outputs.append(F.interpolate(out, size=size, mode="bilinear", align_corners=False).sigmoid())
                else:
                    outputs.append(out)
        return tuple(outputs)


def export_program(model: TensorModel, size: Sequence[int]) -> torch.export.ExportedProgram:
    """Trace a model for a fixed image size (height, width) and a dynamic batch size.

    Raises:
        FXError: torch cannot trace this backbone.
    """
    example = torch.zeros(2, 1, *size, device=model.model.device)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's use of its own deprecated APIs
            return torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # torch raises many exception classes, some of them private
        raise FXError(f"torch.export cannot trace {model.model.backbone.name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its class if it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


def write_torch(program: torch.export.ExportedProgram, model: TensorModel, path: Path) -> None:
    """Write a .pt2 for `torch.export.load`; its extra file "description.json" is `describe`."""
    torch.export.save(program, path, extra_files={"description.json": json.dumps(describe(model))})


def write_onnx(program: torch.export.ExportedProgram, model: TensorModel, path: Path) -> None:
    """Write an ONNX file; its metadata entry "fx_d2" is `describe` as json.

    Raises:
        FXError: packages of the extra `export` are missing, or the model has an operator that ONNX cannot express.
    """
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise FXError(f"ONNX needs the package {missing[0]}: pip install -e '.[export]'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # optimize=False: onnxscript's folding loses a node of the localization decoders; runtimes optimize anyway.
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=model.names,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # torch raises many exception classes, some of them private
        raise FXError(f"this model cannot be exported to ONNX: {_reason(error)}") from error
    assert exported is not None, "torch.onnx.export with dynamo returns a program"
    exported.model.metadata_props["fx_d2"] = json.dumps(describe(model))
    exported.save(path)


def describe(model: TensorModel) -> dict[str, Any]:
    """Description of the outputs: {"outputs": names, "classes": {dataset: {task: class names}}}."""
    specs = model.model.specs
    classes = {name: {task: list(specs[name].classes(task)) for task in tasks} for name, tasks in model.wanted.items()}
    return {"outputs": model.names, "classes": classes}
