"""Commands as modules: `tools` is no package, and Detectron2's wheel has one of that name. And drawn films."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from fx_d2.data import write_spec, write_split
from fx_d2.structures import DatasetSpec

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="session")
def load_tool() -> Callable[[str], ModuleType]:
    """Function (name) -> tools/<name>.py as a module."""

    def load(name: str) -> ModuleType:
        found = importlib.util.spec_from_file_location(f"fx_{name}", TOOLS / f"{name}.py")
        assert found is not None and found.loader is not None
        module = sys.modules[found.name] = importlib.util.module_from_spec(found)  # dataclasses look there
        found.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def ownset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the prepared dataset "ownset" of all three tasks: ten even films of 40 x 50 pixels, film<i>.png.

    The label "a" of film i is i % 2; each has a box "n" from (3, 4) to (23, 14), and a mask "m". Splits train and test.
    """
    root, height, width = tmp_path_factory.mktemp("prepared"), 40, 50
    spec = DatasetSpec(name="ownset", title="Own set", cls_classes=("a",), loc_classes=("n",), seg_classes=("m",))
    folder = root / spec.name
    (folder / "images").mkdir(parents=True)
    mask = np.zeros((height, width), bool)
    mask[5:20, 5:20] = True
    images = []
    for i in range(10):
        cv2.imwrite(str(folder / "images" / f"film{i}.png"), np.full((height, width), 20 * i, np.uint8))
        row = {"file_name": f"film{i}.png", "width": width, "height": height, "patient_id": str(i), "labels": [i % 2]}
        images.append(row | {"boxes": [("n", [3, 4, 20, 10])], "masks": [mask]})
    for split in ("train", "test"):
        write_split(folder / f"{split}.json", spec=spec, split=split, image_root="images", images=images)
    write_spec(folder, spec)
    return root
