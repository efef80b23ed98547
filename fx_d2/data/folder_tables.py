"""Readers for the text files of a plain folder: dataset.json, csv tables, split lists, COCO boxes.

Byte order marks, CRLF line endings and spaces around cells are accepted; every problem is a one-line FXError.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fx_d2.data.release_files import read_json, read_rows
from fx_d2.structures import SPLITS, FXError

logger = logging.getLogger(__name__)


@dataclass
class ImageBoxes:
    """The boxes of one image in a COCO file.

    Attributes:
        size: (width, height) in pixels according to the file.
        file: the COCO file.
        boxes: (class name, [x, y, w, h]) in pixels; empty = a true negative.
    """

    size: tuple[int, int]
    file: Path
    boxes: list[tuple[str, list[float]]] = field(default_factory=list)


Boxes = dict[str, ImageBoxes]
"""By file name."""


def read_description(root: Path) -> dict[str, Any]:
    """Load and validate the dataset.json of a folder; FXError names the key."""
    file = root / "dataset.json"
    if not root.is_dir():
        raise FXError(f"{root}: no such folder")
    description = read_json(file, dict)
    _check_part(description, _DESCRIPTION, ("name",), f"{file}:")
    splits = description.get("splits")
    strange = sorted(set(splits or ()) - set(SPLITS))
    if strange or splits == {}:
        raise FXError(f"{file}: `splits` must map some of {list(SPLITS)} to list files; unknown: {strange}")
    for key, (keys, needed) in {"labels": _LABELS, "masks": _MASKS}.items():
        if description.get(key) is not None:
            _check_part(description[key], keys, needed, f"{file}: `{key}`")
    for kind, part in (description.get("boxes") or {}).items():
        _check_part(part, *_BOXES, f"{file}: `boxes.{kind}`")
        if (part.get("file") is None) == (part.get("files") is None):
            raise FXError(f"{file}: `boxes.{kind}` needs either `file`, or `files` by split")
        if part.get("files") is not None and splits is None:
            raise FXError(f"{file}: `boxes.{kind}` has `files` by split but there are no `splits`: give one `file`")
    return description


_TEXT = ("a string", lambda value: isinstance(value, str))
_OBJECT = ("an object", lambda value: isinstance(value, dict))
_NAMES = ("a list of strings", lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value))
_FILES = ("an object of file names", lambda value: isinstance(value, dict) and _NAMES[1](list(value.values())))
_LIST = ("a list", lambda value: isinstance(value, list))

Keys = Mapping[str, tuple[str, Callable[[Any], bool]]]
"""Allowed keys of an object: the type of the value, as text and as a predicate. null counts as absent."""

_DESCRIPTION: Keys = {
    **dict.fromkeys(("name", "title", "source", "licence", "images"), _TEXT),
    **dict.fromkeys(("labels", "boxes", "masks"), _OBJECT),
    "splits": _FILES,
    "intensity": _LIST,
}
_LABELS: tuple[Keys, tuple[str, ...]] = ({"file": _TEXT, "columns": _NAMES}, ("columns",))
_BOXES: tuple[Keys, tuple[str, ...]] = ({"file": _TEXT, "files": _FILES, "categories": _NAMES}, ("categories",))
_MASKS: tuple[Keys, tuple[str, ...]] = (
    {**dict.fromkeys(("folder", "index", "ignore"), _TEXT), "structures": _NAMES},
    ("structures",),
)
"""Allowed and required keys of the parts."""


def _check_part(part: Any, keys: Keys, needed: Sequence[str], where: str) -> None:
    """FXError unless a part of the description is an object with all `needed` keys and no keys outside `keys`."""
    see = "(datasets/README.md shows a minimal dataset.json)"
    if not isinstance(part, dict):
        raise FXError(f"{where} must be an object, not {part!r} {see}")
    for key, value in part.items():
        if key not in keys:
            raise FXError(f"{where} has the unknown key `{key}`; allowed keys: {sorted(keys)}")
        what, fits = keys[key]
        if value is not None and not fits(value):
            raise FXError(f"{where} has a `{key}` that is not {what}: {value!r}")
    missing = [key for key in needed if part.get(key) is None]
    if missing:
        raise FXError(f"{where} has no `{missing[0]}` {see}")


def read_table(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Rows of a csv by column `image` (see `release_files.read_rows`); FXError if an image occurs twice."""
    rows: dict[str, dict[str, str]] = {}
    for row in read_rows(file, ("image", *columns), optional=optional):
        if not row["image"]:
            raise FXError(f"{file}: a row names no image: {row}")
        if row["image"] in rows:
            raise FXError(f"{file}: image {row['image']!r} occurs twice")
        rows[row["image"]] = row
    return rows


def read_names(file: Path) -> list[str]:
    """The image names of a split list, one per line; FXError for an empty list or a repeated name."""
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
    """Read a COCO detection JSON: boxes by file name. Every image in it is annotated, with or without boxes.

    Args:
        file: the JSON file.
        categories: expected category names, in any order.
        names: images that the file may list: those of its split, or all.

    Raises:
        FXError: invalid content; the message names the file and the image or annotation.
    """
    document = read_json(file, dict)
    try:
        classes = {row["id"]: str(row["name"]) for row in document["categories"]}
        owners = {row["id"]: str(row["file_name"]) for row in document["images"]}
        boxes = {
            owners[row["id"]]: ImageBoxes((int(row["width"]), int(row["height"])), file) for row in document["images"]
        }
        annotations = [
            (row, row["bbox"], owners.get(row["image_id"]), classes.get(row["category_id"]))
            for row in document["annotations"]
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FXError(f"{file}: not a COCO detection JSON ({error!r})") from None
    for what, key in (("categories", "id"), ("images", "id"), ("images", "file_name")):
        repeats = Counter(repr(row[key]) for row in document[what]).most_common(1)
        if repeats and repeats[0][1] > 1:
            raise FXError(f"{file}: {repeats[0][0]} is the {key} of {repeats[0][1]} {what}")
    if sorted(classes.values()) != sorted(categories):
        found = sorted(classes.values())
        raise FXError(f"{file}: categories {found} are not those of dataset.json: {sorted(categories)}")
    strange = sorted(set(boxes) - names)
    if strange:
        raise FXError(
            f"{file}: image {strange[0]!r} is not among the images of its split or table, such as {min(names)!r} "
            f"({len(strange)} such images)"
        )
    for row, box, owner, name in annotations:
        where = f"{file}: annotation {row.get('id')}"
        if owner is None:
            raise FXError(f"{where}: there is no image with id {row['image_id']!r}")
        if name is None:
            raise FXError(f"{where}: there is no category with id {row['category_id']!r}")
        if row.get("iscrowd"):
            raise FXError(f"{where}: crowd boxes (iscrowd 1) are not supported")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise FXError(f"{where}: bbox must be four numbers [x, y, w, h], not {box!r}")
        boxes[owner].boxes.append((name, box))
    _warn_of_repeated(boxes, file)
    return boxes


def _warn_of_repeated(boxes: Boxes, file: Path) -> None:
    """Warn of duplicate boxes: they are kept, and a model would have to detect each of them twice."""
    repeated = {
        name: len(image.boxes) - len({(label, *box) for label, box in image.boxes}) for name, image in boxes.items()
    }
    if any(repeated.values()):
        first = next(name for name, count in repeated.items() if count)
        logger.warning("%s: %d boxes are duplicated in their image, first in %r", file, sum(repeated.values()), first)


def _read_text(file: Path) -> str:
    """The text of a file without a byte order mark; FXError if it is missing or not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FXError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise FXError(f"{file}: cannot be read ({error.strerror}), but is required (datasets/README.md)") from None
