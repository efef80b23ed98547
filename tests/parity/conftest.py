"""Our model with the reference's weights in float64, and a table of differences.

A folder of the form of `reference/` (its README says what that is) is read from FX_PARITY_DIR, if that is set.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor

from fx_d2.data import register_rows
from fx_d2.engine import build_cfg
from fx_d2.modeling import FoundationX
from fx_d2.modeling.convert import convert_state

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FX_PARITY_DIR") or Path(__file__).parent / "reference")
TOLERANCE = 1e-9


class Reference:
    """The folder: images, weights, expected arrays; and the largest difference seen per group of arrays."""

    def __init__(self, folder: Path) -> None:
        self.rules = _import(folder / "reference_weights.py")
        self.seeds: dict[str, int] = json.loads((folder / "seeds.json").read_text())
        self.shapes: dict[str, list[int]] = json.loads((folder / "official_state_dict.json").read_text())
        with np.load(folder / "reference_outputs.npz") as file:
            self.arrays = {name: file[name] for name in file.files}
        self.left = set(self.arrays)
        self.worst: dict[str, float] = defaultdict(float)
        self.count: dict[str, int] = defaultdict(int)

    def state_dict(self) -> dict[str, Tensor]:
        """A checkpoint's "model": every name, aliases sharing one tensor as they do in a file."""
        drawn: dict[str, Tensor] = {}
        for key, shape in self.shapes.items():
            name = self.rules.canonical(key)
            if name not in drawn:
                value = self.rules.value(key, shape)
                # Counters and index tables have no value of their own.
                drawn[name] = torch.zeros(shape, dtype=torch.int64) if value is None else torch.as_tensor(value)
        return {key: drawn[self.rules.canonical(key)] for key in self.shapes}

    def images(self, name: str, *shapes: tuple[int, int]) -> list[Tensor]:
        """Normalised (3, H, W) images in float64; `name` is one of seeds.json."""
        drawn = self.rules.images(self.seeds[name], shapes) if shapes else self.rules.images(self.seeds[name])
        return [torch.from_numpy(image).double() for image in drawn]

    def check(self, group: str, name: str, ours: Tensor | float) -> None:
        """Compare one array; integers exactly, numbers within TOLERANCE beyond the file's own rounding."""
        theirs = self.arrays[name]
        self.left.discard(name)
        mine = torch.as_tensor(ours).detach().numpy()
        assert mine.shape == theirs.shape, f"{name}: {mine.shape}, not {theirs.shape}"
        if not np.issubdtype(theirs.dtype, np.floating):
            assert np.array_equal(mine, theirs), f"{name}: {(mine != theirs).sum()} of {theirs.size} differ"
            self.count[group] += 1
            return
        difference = np.abs(mine.astype(theirs.dtype) - theirs)  # some arrays are kept in float32
        allowed = TOLERANCE + (np.spacing(np.abs(theirs)) if theirs.dtype == np.float32 else 0)
        self.worst[group] = max(self.worst[group], float(difference.max()))
        self.count[group] += 1
        assert (difference <= allowed).all(), f"{name}: differs by up to {difference.max():.2e}"

    def table(self) -> str:
        """Groups, number of arrays, largest absolute difference."""
        rows = [f"{group:40} {n:5}  {self.worst.get(group, 0.0):.1e}" for group, n in self.count.items()]
        return "\n".join([f"{'group':40} {'arrays':>5}  largest difference", *rows])


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_weights", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    folder = Reference(FOLDER)
    yield folder
    print(f"\n{FOLDER}\n{folder.table()}")


@pytest.fixture(scope="module")
def official(reference: Reference) -> dict[str, Tensor]:
    return reference.state_dict()


@pytest.fixture(scope="module")
def model(official: dict[str, Tensor]) -> FoundationX:
    """configs/reference.yaml in float64, all weights from the official layout."""
    cfg = build_cfg(str(ROOT / "projects/FoundationX/configs/reference.yaml"), ["MODEL.DEVICE", "cpu"])
    register_rows(cfg)
    built = build_model(cfg).double().eval()
    built.load_state_dict(convert_state(official, built.state_dict()).state)
    return built
