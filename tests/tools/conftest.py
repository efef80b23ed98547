"""Commands as modules: `tools` is no package, and Detectron2's wheel has one of that name."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

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
