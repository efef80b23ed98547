"""Readers of a plain folder's text files: dataset.json, csv tables, split lists, COCO boxes.

Byte order marks, CRLF line ends and blanks around cells are harmless; every fault is an FXError of one line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fx_d2.structures import SPLITS, FXError


@dataclass
class ImageBoxes:
    """The boxes of one image that a COCO file lists.

    Attributes:
        size: (width, height) in pixels, as the file states it.
        file: the COCO file.
        boxes: (class name, [x, y, w, h]) in pixels; empty = a true negative.
    """

    size: tuple[int, int]
    file: Path
    boxes: list[tuple[str, list[float]]] = field(default_factory=list)


Boxes = dict[str, ImageBoxes]
"""By file name."""


def read_description(root: Path) -> dict[str, Any]:
    """dataset.json of a folder, with the parts that are needed; FXError says what a minimal one holds."""
    file = root / "dataset.json"
    if not root.is_dir():
        raise FXError(f"{root}: no such folder")
    if not file.is_file():
        raise FXError(f"{file}: not found; it describes the folder, datasets/README.md shows a minimal one")
    description = _read_json(file)
    if not isinstance(description, dict):
        raise FXError(f"{file}: must hold an object with name, splits and labels (datasets/README.md)")
    for key, kind in (("name", str), ("splits", dict)):
        if not isinstance(description.get(key), kind):
            raise FXError(f"{file}: lacks `{key}` (datasets/README.md shows a minimal dataset.json)")
    strange = sorted(set(description["splits"]) - set(SPLITS))
    if strange or not description["splits"]:
        raise FXError(f"{file}: `splits` must map some of {list(SPLITS)} to list files; unknown: {strange}")
    shapes: dict[str, dict[str, type]] = {"labels": {"columns": list}, "masks": {"structures": list}}
    for key, needed in shapes.items():
        _check_part(description.get(key), needed, f"{file}: `{key}`")
    for kind_name, part in (description.get("boxes") or {}).items():
        _check_part(part, {"files": dict, "categories": list}, f"{file}: `boxes.{kind_name}`")
    return description


def _check_part(part: object, needed: dict[str, type], where: str) -> None:
    """FXError unless a part of the description is absent or holds the needed keys."""
    if part is None:
        return
    missing = [key for key, kind in needed.items() if not isinstance(part, dict) or not isinstance(part.get(key), kind)]
    if missing:
        raise FXError(f"{where} lacks `{missing[0]}` (datasets/README.md shows a minimal dataset.json)")


def read_table(file: Path, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Rows of a csv by its column `image`, cells stripped; FXError for a missing column, naming the existing ones."""
    rows: dict[str, dict[str, str]] = {}
    lines = csv.reader(_read_text(file).splitlines())
    header = [cell.strip() for cell in next(lines, [])]
    for column in ("image", *columns):
        if column not in header:
            raise FXError(f"{file}: no column {column!r}; it has {header}")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise FXError(f"{file}: column {repeated[0]!r} occurs twice")
    for number, cells in enumerate(lines, start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise FXError(f"{file}: line {number} has {len(cells)} cells, the header {len(header)}")
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        if row["image"] in rows:
            raise FXError(f"{file}: line {number}: image {row['image']!r} occurs twice")
        rows[row["image"]] = row
    if not rows:
        raise FXError(f"{file}: has no rows")
    return rows


def read_names(file: Path) -> list[str]:
    """The image names of a split list, one a line; FXError for an empty list or a name that occurs twice."""
    names = [line.strip() for line in _read_text(file).splitlines() if line.strip()]
    if not names:
        raise FXError(f"{file}: the split is empty")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise FXError(f"{file}: image {name!r} occurs twice")
        seen.add(name)
    return names


def read_boxes(file: Path, categories: Sequence[str], names: set[str]) -> Boxes:
    """Boxes of a COCO detection json by file name; an image it lists is annotated, with or without boxes.

    Args:
        file: the json.
        categories: class names that its categories must be, in any order.
        names: images of the split; the file may list no other.

    Raises:
        FXError: naming file and image or annotation.
    """
    document = _read_json(file)
    try:
        classes = {row["id"]: row["name"] for row in document["categories"]}
        owners = {row["id"]: row for row in document["images"]}
        boxes = {
            row["file_name"]: ImageBoxes((int(row["width"]), int(row["height"])), file) for row in document["images"]
        }
        annotations = [(row.get("id"), row["image_id"], row["category_id"], row["bbox"], row.get("iscrowd"))
                       for row in document["annotations"]]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise FXError(f"{file}: not COCO detection json ({error!r})") from None
    if sorted(classes.values()) != sorted(categories):
        found = sorted(classes.values())
        raise FXError(f"{file}: categories {found} are not those of dataset.json: {sorted(categories)}")
    if len(owners) != len(document["images"]) or len(boxes) != len(owners):
        raise FXError(f"{file}: an image id or file name occurs twice")
    strange = sorted(set(boxes) - names)
    if strange:
        raise FXError(f"{file}: image {strange[0]!r} is not in this split ({len(strange)} such images)")
    for number, owner, category, box, crowd in annotations:
        where = f"{file}: annotation {number}"
        if owner not in owners:
            raise FXError(f"{where}: there is no image with id {owner!r}")
        if category not in classes:
            raise FXError(f"{where}: there is no category with id {category!r}")
        if crowd:
            raise FXError(f"{where}: crowd boxes (iscrowd 1) are not supported")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise FXError(f"{where}: bbox must be four numbers [x, y, w, h], not {box!r}")
        boxes[owners[owner]["file_name"]].boxes.append((classes[category], box))
    return boxes


def _read_json(file: Path) -> Any:
    try:
        return json.loads(_read_text(file))
    except ValueError as error:
        raise FXError(f"{file}: not readable json ({error})") from None


def _read_text(file: Path) -> str:
    """The text of a file without a byte order mark; FXError when it is missing or not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FXError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise FXError(f"{file}: cannot be read ({error.strerror}), but is needed (datasets/README.md)") from None
