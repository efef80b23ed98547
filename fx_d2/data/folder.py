"""Convert a plain folder of images, tables and masks to the annotation format.

The folder layout is described in datasets/README.md. Everything is read and validated before annotations are written.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fx_d2.data.annotations import check_patients
from fx_d2.data.cache import cache_images
from fx_d2.data.catalog import check_own_row
from fx_d2.data.codecs import read_mask_file
from fx_d2.data.folder_tables import Boxes, read_boxes, read_description, read_names, read_table
from fx_d2.data.image_io import image_size
from fx_d2.data.masks import Rle, encode_mask
from fx_d2.data.preparation import Prepared, relative_root, write_dataset
from fx_d2.data.report_labels import read_labels
from fx_d2.data.sides import find_flip_pairs
from fx_d2.data.splits import fill_splits
from fx_d2.structures import SPLITS, TASKS, DatasetSpec, FXError

logger = logging.getLogger(__name__)

_META = ("sex", "age", "view")
_OPTIONAL = ("study_id", "width", "height", *_META)
"""Optional columns of labels.csv."""


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """What to use from a folder; empty means everything in dataset.json.

    Attributes:
        name: name of the dataset; empty: the name in dataset.json.
        tasks: some of "cls", "loc", "seg".
        boxes: kind of boxes; required if the folder has several.
        labels: label columns, in the order of the logits.
        masks: mask structures, in the order of the channels.
        flip_pairs: class pairs swapped by a horizontal flip; None: inferred from "left" and "right" in the names.
        uncertain: policy for label -1.
        blank: policy for blank labels.
        cache_size: shorter side in pixels of reduced copies to train from; 0: train from the original images.
        val_share, test_share, seed: random splits, see `splits.fill_splits`.
    """

    name: str = ""
    tasks: tuple[str, ...] = ()
    boxes: str = ""
    labels: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    flip_pairs: tuple[tuple[str, str], ...] | None = None
    uncertain: str = "ignore"
    blank: str = "ignore"
    cache_size: int = 0
    val_share: float | None = None
    test_share: float | None = None
    seed: int = 0


@dataclass
class _Source:
    """A folder, its description and the selected parts."""

    root: Path
    description: dict[str, Any]
    options: FolderOptions
    box_kind: str = ""
    labels: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    ignore: str = ""
    table: dict[str, dict[str, str]] = field(default_factory=dict)
    mask_index: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def table_file(self) -> Path:
        """Path of labels.csv."""
        return self.root / ((self.description.get("labels") or {}).get("file") or "labels.csv")

    @property
    def index_file(self) -> Path:
        """Path of masks_index.csv."""
        return self.root / (self.description["masks"].get("index") or "masks_index.csv")


def prepare_folder(source: str | Path, output: str | Path, options: FolderOptions) -> Prepared:
    """Write `<output>/<name>/{train,val,test}.json` and dataset.yaml for a plain folder.

    Images are referenced in place, by a relative path if they are inside `output`, otherwise by an absolute path; with
    `cache_size`, reduced copies are written to `<output>/<name>/cache_<size>` and referenced instead.

    Args:
        source: the folder that contains dataset.json.
        output: root of the prepared datasets (DATASETS.ROOT).
        options: what to use.

    Returns:
        the output folder, and the Detectron2 dicts by split.

    Raises:
        FXError: the first problem found; no annotation files were written.
    """
    src = _choose(Path(source), options)
    spec = _build_spec(src)
    check_own_row(spec, str(source))
    target = Path(output) / spec.name
    splits = _read_splits(src)
    image_root = relative_root(_image_folder(src), target)
    if options.cache_size:
        image_root = f"cache_{options.cache_size}"
        roots = {"image_root": _image_folder(src), "cache_root": target / image_root}
        splits = {
            split: cache_images(images, **roots, shorter=options.cache_size, threads=os.cpu_count() or 1)
            for split, images in splits.items()
        }
    return target, write_dataset(target, spec, splits, image_root=image_root)


def _choose(root: Path, options: FolderOptions) -> _Source:
    """Read the description and select labels, boxes and masks; FXError for those the folder does not have."""
    description = read_description(root)
    where = str(root / "dataset.json")
    boxes = description.get("boxes") or {}
    masks = description.get("masks") or {}
    columns = (description.get("labels") or {}).get("columns", [])
    available = {"cls": bool(columns), "loc": bool(boxes), "seg": bool(masks)}
    described = tuple(task for task in TASKS if available[task])
    strange = [task for task in options.tasks if not available.get(task)]
    if strange:
        raise FXError(f"{where}: has no annotations for task {strange[0]!r}; it has {described}")
    tasks = options.tasks or described
    src = _Source(root, description, options)
    if "cls" in tasks:
        src.labels = tuple(options.labels or columns)
    if "loc" in tasks:
        src.box_kind = options.boxes or (next(iter(boxes)) if len(boxes) == 1 else "")
        if src.box_kind not in boxes:
            problem = f"no boxes {src.box_kind!r}" if src.box_kind else "several kinds of boxes"
            raise FXError(f"{where}: {problem}; choose --boxes one of {list(boxes)}")
    if "seg" in tasks:
        src.masks, src.ignore = tuple(options.masks or masks["structures"]), masks.get("ignore") or ""
        unknown = [name for name in src.masks if name not in masks["structures"]]
        if unknown:
            raise FXError(f"{where}: no mask structure {unknown[0]!r}; it has {masks['structures']}")
    src.table = read_table(src.table_file, ["patient_id", *src.labels], _OPTIONAL)
    if src.masks:
        src.mask_index = read_table(src.index_file, [*src.masks, *filter(None, [src.ignore])])
        _check_mask_index(src)
    return src


def _check_mask_index(src: _Source) -> None:
    """FXError for a row without an image, or two images that share a mask file name."""
    strange = [name for name in src.mask_index if name not in src.table]
    if strange:
        raise FXError(f"{src.index_file}: image {strange[0]!r} is not in {src.table_file} ({len(strange)} such images)")
    owner: dict[str, str] = {}
    for name in src.mask_index:
        if owner.setdefault(Path(name).stem, name) != name:
            raise FXError(
                f"{src.index_file}: images {owner[Path(name).stem]!r} and {name!r} would share the mask file name "
                f"{Path(name).stem}.png: rename one of them"
            )


def _build_spec(src: _Source) -> DatasetSpec:
    """The dataset row."""
    options, name = src.options, src.options.name or str(src.description["name"])
    loc = tuple(src.description["boxes"][src.box_kind]["categories"]) if src.box_kind else ()
    pairs = find_flip_pairs((src.labels, loc, src.masks)) if options.flip_pairs is None else options.flip_pairs
    return DatasetSpec(
        name=name,
        title=str(src.description.get("title") or name),
        cls_classes=src.labels,
        loc_classes=loc,
        seg_classes=src.masks,
        uncertain=options.uncertain,
        blank=options.blank,
        flip_pairs=pairs,
        source=str(src.description.get("source") or ""),
        licence=str(src.description.get("licence") or ""),
    )


def _image_folder(src: _Source) -> Path:
    return src.root / str(src.description.get("images") or "images")


def _read_splits(src: _Source) -> dict[str, list[dict[str, Any]]]:
    """The images of each split in the format of `write_split`; splits from lists, or random."""
    listed = {split: _read_list(src, split) for split in SPLITS if split in (src.description.get("splits") or {})}
    listed = listed or {"": list(src.table)}
    boxes = _read_all_boxes(src, listed)
    images = {
        split: [_read_image_row(src, name, boxes) for name in tqdm(names, desc=split, unit="image", disable=None)]
        for split, names in listed.items()
    }
    _check_splits(src, images)
    shares = {"val": src.options.val_share, "test": src.options.test_share}
    rows = [(split, image) for split, part in images.items() for image in part]
    given, patients = [split for split, _ in rows], [image["patient_id"] for _, image in rows]
    try:
        found = fill_splits(patients, given, shares, src.options.seed)
    except FXError as error:
        raise FXError(f"{src.root}: {error}") from None
    splits = {split: [image for (_, image), x in zip(rows, found, strict=True) if x == split] for split in SPLITS}
    return {split: part for split, part in splits.items() if part}


def _read_list(src: _Source, split: str) -> list[str]:
    """The image names of a split; FXError for one that is not in the table."""
    file = src.root / src.description["splits"][split]
    names = read_names(file)
    for name in names:
        if name not in src.table:
            raise FXError(f"{file}: image {name!r} is not in {src.table_file}")
    return names


def _read_all_boxes(src: _Source, listed: Mapping[str, Sequence[str]]) -> Boxes | None:
    """The boxes of all images, from one file or one file per split; None without boxes."""
    if not src.box_kind:
        return None
    kind = src.description["boxes"][src.box_kind]
    if kind.get("file") is not None:
        return read_boxes(src.root / kind["file"], kind["categories"], set(src.table))
    boxes: Boxes = {}
    for split, names in listed.items():
        if split not in kind["files"]:
            raise FXError(f"{src.root / 'dataset.json'}: boxes {src.box_kind!r} have no file for split {split!r}")
        boxes |= read_boxes(src.root / kind["files"][split], kind["categories"], set(names))
    return boxes


def _read_image_row(src: _Source, name: str, boxes: Boxes | None) -> dict[str, Any]:
    """One image in the format of `write_split`."""
    row = src.table[name]
    width, height = _image_size(_image_folder(src) / name, row, src.table_file)
    if not row["patient_id"]:
        raise FXError(f"{src.table_file}: image {name!r}: patient_id is blank")
    if boxes is not None and name in boxes and boxes[name].size != (width, height):
        raise FXError(
            f"{boxes[name].file}: image {name!r}: size {boxes[name].size}, but the image has {(width, height)}"
        )
    image: dict[str, Any] = {
        "file_name": name,
        "width": width,
        "height": height,
        "patient_id": row["patient_id"],
        "study_id": row["study_id"],
        "intensity": src.description.get("intensity"),
        "labels": read_labels(row, src.labels, f"{src.table_file}: image {name!r}") or None,
        "boxes": boxes[name].boxes if boxes is not None and name in boxes else None,
        "masks": None,
        "meta": {key: row[key] for key in _META if row[key]},
    }
    if name in src.mask_index:
        image["masks"] = [_mask(src, structure, name, (height, width)) for structure in src.masks]
        image["ignore_mask"] = _mask(src, src.ignore, name, (height, width)) if src.ignore else None
    return image


def _image_size(file: Path, row: dict[str, str], table: Path) -> tuple[int, int]:
    """(width, height) from the image header; FXError if the table states another size."""
    if not file.is_file():
        raise FXError(f"{file}: image file not found, but {table.name} lists it{_other_spelling(file)}")
    size = image_size(file)[::-1]
    stated = (row["width"], row["height"])
    if all(stated) and not _same_size(stated, size):
        raise FXError(f"{file}: the image is {size[0]} x {size[1]}, but {table.name} says {stated[0]} x {stated[1]}")
    return size


def _same_size(stated: tuple[str, str], size: tuple[int, int]) -> bool:
    """Whether a table states this size; pandas writes 30.0 for 30 if another row is blank."""
    try:
        return (float(stated[0]), float(stated[1])) == size
    except ValueError:
        return False


def _other_spelling(file: Path) -> str:
    """A hint if the file exists with another case, extension or Unicode normalization of its name, or ""."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    names = sorted(os.listdir(file.parent)) if file.parent.is_dir() else []
    found = [name for name in names if plain(file.name) in (plain(name), plain(Path(name).stem))]
    return f"; there is {found[0]!a}: write the name as the file has it" if found else ""


def _mask(src: _Source, structure: str, name: str, shape: tuple[int, int]) -> Rle | None:
    """One mask by its index value: loaded from its file (1), empty (0) or None (blank: unknown)."""
    file = src.root / (src.description["masks"].get("folder") or "masks") / structure / f"{Path(name).stem}.png"
    (present,) = read_labels(src.mask_index[name], [structure], f"{src.index_file}: image {name!r}")
    if present == -1:
        raise FXError(f"{src.index_file}: image {name!r}, column {structure!r}: -1 has no meaning for a mask")
    if not present:
        return None if present is None else encode_mask(np.zeros(shape, dtype=bool))
    mask = read_mask_file(file)
    if mask.shape != shape:
        raise FXError(f"{file}: the mask is {mask.shape[1]} x {mask.shape[0]}, its image {shape[1]} x {shape[0]}")
    return encode_mask(mask)


def _check_splits(src: _Source, splits: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """FXError for an image or patient in two splits; images in no split are logged."""
    owner: dict[str, str] = {}
    for split, images in splits.items():
        for image in images:
            name = image["file_name"]
            if name in owner:
                raise FXError(f"{src.root}: image {name!r} is in {owner[name]} and in {split}")
            owner[name] = split
    try:
        check_patients(splits)
    except FXError as error:
        raise FXError(f"{src.root}: {error}") from None
    left = len(set(src.table) - set(owner))
    if left:
        logger.warning("%s: %d of %d images are in no split", src.table_file, left, len(src.table))
