"""Changes to the plain folder of the fixture `source`, for tests of what is refused or reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def replace_text(file: str, old: str, new: str) -> Callable[[Path], None]:
    """A file of the folder has other text."""

    def change(root: Path) -> None:
        text = (root / file).read_text(encoding="utf-8-sig")
        assert old in text
        (root / file).write_text(text.replace(old, new))

    return change


def rename_image(old: str, new: str) -> Callable[[Path], Path]:
    """An image file has another name."""
    return lambda root: (root / "images" / old).rename(root / "images" / new)


def repeat_row(part: str, change: dict[str, object]) -> Callable[[Path], None]:
    """The first row of a part of the training boxes is repeated, changed."""

    def add(root: Path) -> None:
        document = json.loads((root / "boxes_train.json").read_text())
        document[part].append(document[part][0] | change)
        (root / "boxes_train.json").write_text(json.dumps(document))

    return add
