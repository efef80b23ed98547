"""Reading weights from files of any origin, without executing code contained in them."""

from __future__ import annotations

import _codecs
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor

from fx_d2.structures import FXError

_STUDENT_KEYS = ("model", "student", "state_dict")
_TEACHER_KEYS = ("teacher", "teacher_model")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_UNREADABLE = (RuntimeError, pickle.UnpicklingError, struct.error, EOFError, ValueError, OSError, IndexError, KeyError)
"""The exceptions of torch and pickle for files that are damaged or of another kind."""

# numpy scalars and arrays are data. A file refers to their constructors by the module path of its numpy version.
_NUMPY = {
    f"{module}.{name}": getattr(multiarray, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
_PICKLE = _NUMPY | {"collections.OrderedDict": OrderedDict, "_codecs.encode": _codecs.encode}
_DTYPES = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler restricted to plain data and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PICKLE[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}") from None


def load_file(path: str) -> Mapping[str, Any]:
    """The content of a .pth file, or of a .pkl of arrays as in Detectron2's model zoo, on the CPU.

    Raises:
        FXError: the file is missing or damaged, is not a mapping, or requires code to unpickle.
    """
    if not os.path.isfile(path):
        raise FXError(f"checkpoint {path} does not exist: check the path (MODEL.WEIGHTS; with --resume OUTPUT_DIR)")
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                content = _ArrayUnpickler(file, encoding="latin1").load()  # for strings written by Python 2
        else:
            with torch.serialization.safe_globals([*((part, name) for name, part in _NUMPY.items()), *_DTYPES]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise FXError(f"checkpoint {path} cannot be read: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise FXError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict")
    return content


def _reason(error: Exception) -> str:
    text = str(error)
    if wanted := re.search(r"GLOBAL (\S+)", text):
        return (
            f"it needs {wanted[1]} to unpickle, and code from a file is not executed; use the program that wrote it to "
            "save only the tensors"
        )
    first = text.splitlines()[0] if text and "weights_only" not in text else type(error).__name__
    return f"it is damaged, or not a file of weights ({first})"


@dataclass(frozen=True)
class Source:
    """The models in a file.

    Attributes:
        path: the file.
        models: "student", "teacher" or both -> state dict with names as in the file.
        default: which of them to use unless specified.
        notes: one sentence for each modification.
        classes: the dataset rows of the heads as plain data, if the file contains them.
    """

    path: str
    models: dict[str, dict[str, Tensor]]
    default: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    classes: Mapping[str, Any] | None = None

    def pick(self, which: str) -> dict[str, Tensor]:
        """One of the models; FXError if the file does not contain it."""
        if which not in self.models:
            raise FXError(f"{self.path} holds no {which}, only: {', '.join(self.models)}")
        return self.models[which]


def read_source(path: str) -> Source:
    """Read student and teacher from a file with any of the known layouts.

    Known are fx_d2's {"model", "teacher"}, the authors' {"model", "teacher_model"}, Ark's {"state_dict", "teacher"} (of
    which the recipe uses the teacher), {"model"}, {"state_dict"}, and a bare state dict.

    Raises:
        FXError: see `load_file`; or the file contains no tensors.
    """
    content = load_file(path)
    notes: list[str] = []
    student = next((content[key] for key in _STUDENT_KEYS if isinstance(content.get(key), Mapping)), None)
    teacher = next((content[key] for key in _TEACHER_KEYS if isinstance(content.get(key), Mapping)), None)
    if student is None and teacher is None:
        student = content
    found = {name: _tensors(state) for name, state in (("student", student), ("teacher", teacher)) if state is not None}
    models = {name: state for name, state in found.items() if state}
    if not models:
        raise FXError(f"checkpoint {path} holds no tensors; its keys are {[str(key) for key in list(content)[:8]]}")
    if "teacher" in models and "teacher_model" in content and "student" in models:
        statistics = {k: v for k, v in models["student"].items() if k.endswith(_STATISTICS)}
        models["teacher"] |= {k: v for k, v in statistics.items() if k in models["teacher"]}
        notes.append("running statistics of the teacher are the student's: the authors' code never updates its own")
    default = tuple(models)
    if "state_dict" in content and "teacher" in models and "model" not in content:
        default = ("teacher",)
    return Source(path, models, default, notes, content.get("classes"))


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors and arrays of a state dict, without other entries and without the prefix of fx_d2's teacher."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value))  # a copy: torch expects writable memory
        if isinstance(value, Tensor):
            found[str(key)] = value
    prefixed = bool(found) and all(key.startswith("model.") for key in found)
    return {key.removeprefix("model.") if prefixed else key: value for key, value in found.items()}
