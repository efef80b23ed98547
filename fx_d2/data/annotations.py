"""The annotation format: a superset of COCO detection JSON, one file per split, plus `dataset.yaml`.

Writer and loader share one validator, so every file written can be loaded. Errors are FXErrors that name the file and
the image or annotation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fx_d2.data.masks import Rle, encode_mask
from fx_d2.data.records import read_records
from fx_d2.files import write_atomic
from fx_d2.structures import TASKS, DatasetSpec, FXError

FORMAT = "fx_d2"
FORMAT_VERSION = 1
SPEC_FILE = "dataset.yaml"

_FIELDS = (
    "file_name", "width", "height", "patient_id", "study_id", "labels", "boxes", "masks", "ignore_mask", "intensity",
    "stored_size", "meta",
)  # fmt: skip
"""Keys of an image in the format of `write_split`."""


def write_split(
    path: str | Path,
    *,
    spec: DatasetSpec,
    split: str,
    image_root: str | Path,
    images: Sequence[Mapping[str, Any]],
    source: str = "",
    licence: str = "",
    release: str = "",
) -> None:
    """Write the annotation file of one split, atomically.

    Args:
        path: the JSON file, usually `<root>/<spec.name>/<split>.json`; parent folders are created.
        spec: the dataset row; the images are validated against its classes.
        split: "train", "val" or "test".
        image_root: image folder, absolute or relative to the folder of the JSON file.
        images: one mapping per image with `file_name` (relative to image_root), `width`, `height` (pixels),
            `patient_id` (str or int), and the annotation of each task, None = not annotated: `labels` (per cls class
            1, 0, -1 = uncertain or None = blank), `boxes` (list of (class name, [x, y, w, h] in pixels); empty list =
            true negative), `masks` (per seg class an array (H, W), an RLE, {"file": mask file relative to image_root,
            loaded lazily}, or None = unknown; all-zero = annotated and absent).
            Optional: `study_id`; `intensity` ([black, white] of the stored values, see `read_image`); `stored_size`
            (see `cache_images`); `ignore_mask` (array or RLE: pixels excluded from loss and metrics); `meta` (plain
            data).
        source: origin of the data; empty: that of the row.
        licence: licence of the data; empty: that of the row.
        release: version of the public release.

    Raises:
        FXError: an unknown key, or anything that `load_split` would reject; the message names the image.
    """
    request = SplitRequest(Path(path), split, images, source, licence, release)
    write_splits([request], spec=spec, image_root=image_root)


@dataclass(frozen=True)
class SplitRequest:
    """One file for `write_splits`; the fields are arguments of `write_split`."""

    path: Path
    split: str
    images: Sequence[Mapping[str, Any]]
    source: str = ""
    licence: str = ""
    release: str = ""


def write_splits(requests: Sequence[SplitRequest], *, spec: DatasetSpec, image_root: str | Path) -> None:
    """Write several splits of a dataset, as `write_split`; if any is invalid, none is written."""
    texts = [(request.path, _split_text(request, spec, image_root)) for request in requests]
    for path, text in texts:
        write_atomic(path, text)


def _split_text(request: SplitRequest, spec: DatasetSpec, image_root: str | Path) -> str:
    """The validated JSON document of one split."""
    path = request.path
    rows: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for image_id, image in enumerate(request.images, start=1):
        try:
            rows.append(_image_row(image, image_id, spec))
            boxes += _box_rows(image.get("boxes"), image_id, spec, first=len(boxes) + 1)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            name = image.get("file_name") if isinstance(image, Mapping) else image
            problem = {FXError: str(error), KeyError: f"has no {error}"}.get(type(error), f"malformed ({error})")
            raise FXError(f"{path}: image {name!r}: {problem}") from None
    content = {
        "classes": {task: list(spec.classes(task)) for task in TASKS},
        "categories": [{"id": i, "name": name} for i, name in enumerate(spec.loc_classes, start=1)],
        "images": rows,
        "annotations": boxes,
    }
    info = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dataset": spec.name,
        "split": request.split,
        "image_root": str(image_root),
        "source": request.source or spec.source,
        "licence": request.licence or spec.licence,
        "release": request.release,
        "content_hash": content_hash(content),
    }
    document = {"info": info, **content}
    _check_head(document, spec, request.split, str(path))
    read_records(document, spec, str(path), image_root="")
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def content_hash(document: Mapping[str, Any]) -> str:
    """ "sha256:..." of the content of an annotation document: images, annotations, categories, classes; not `info`."""
    content = {key: document[key] for key in ("images", "annotations", "categories", "classes")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def file_content_hash(path: str | Path) -> str:
    """Recompute the `content_hash` of an annotation file; it does not depend on image_root or other `info`."""
    return content_hash(json.loads(Path(path).read_bytes()))


def load_split(path: str | Path, spec: DatasetSpec, split: str) -> list[dict[str, Any]]:
    """Load the validated Detectron2 dicts of one split, in file order.

    Each dict: dataset, file_name (absolute), image_id, height, width, intensity ([black, white] or None), stored_size
    ([height, width] of the file if it is a smaller copy, or None), patient_id, study_id ("" = unknown), labels
    (list of 1, 0, -1, None, or None), annotated {task: bool}, annotations (list of {bbox, bbox_mode XYWH_ABS,
    category_id 0-based}), masks (list of RLE, {"file": absolute path} or None, or None; see `masks.image_masks`),
    ignore_mask (RLE or None), meta. `annotated["cls"]` is False for an image whose labels are all unknown under the
    row's policies. Image files are not accessed: see `catalog.check_images`.

    Raises:
        FXError: a missing or broken file, another format or version, class lists that differ from the row's, no images,
            an invalid image or annotation (the message names it), or a content that does not match
            `info.content_hash`, if present.
    """
    path = Path(path)
    where = str(path)
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FXError(f"{where}: annotation file not found; prepare the dataset first (datasets/README.md)") from None
    except (ValueError, OSError) as error:
        raise FXError(f"{where}: not a readable json file ({error})") from None
    _check_head(document, spec, split, where)
    root = document["info"].get("image_root", "")
    records = read_records(document, spec, where, image_root=os.path.abspath(path.parent / root))
    stated = document["info"].get("content_hash")
    if stated and stated != content_hash(document):
        raise FXError(
            f"{where}: its content does not match info.content_hash: it was changed or damaged after it was written; "
            "prepare the dataset again (after a deliberate manual edit, remove content_hash)"
        )
    return records


def write_spec(folder: str | Path, spec: DatasetSpec) -> None:
    """Write the dataset row to `<folder>/dataset.yaml`, from which custom datasets are registered."""
    text = yaml.safe_dump(spec.to_dict(), sort_keys=False, allow_unicode=True, width=120)
    write_atomic(Path(folder) / SPEC_FILE, text)


def load_spec(path: str | Path) -> DatasetSpec:
    """Load the dataset row from a dataset.yaml, or from the folder that contains it; FXErrors name file and key."""
    path = Path(path)
    path = path / SPEC_FILE if path.is_dir() else path
    try:
        row = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FXError(f"{path}: not found; datasets/prepare_folder.py writes it (datasets/README.md)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FXError(f"{path}: not readable yaml ({' '.join(str(error).split())})") from None
    try:
        return DatasetSpec.from_dict(row, str(path))
    except FXError as error:
        raise FXError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except (TypeError, AttributeError) as error:
        raise FXError(f"{path}: a field of the row has the wrong type ({error})") from None


def check_patients(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Check that no patient is in two splits of a dataset.

    Args:
        splits: images (Detectron2 dicts or mappings for `write_split`, with `patient_id`) by split name.

    Raises:
        FXError: names one such patient, both splits and the number of such patients.
    """
    seen: dict[str, set[str]] = {}
    for name, images in splits.items():
        patients = {str(image["patient_id"]) for image in images}
        for other, known in seen.items():
            shared = sorted(patients & known)
            if shared:
                raise FXError(
                    f"patient {shared[0]!r} is in {other} and in {name} ({len(shared)} such patients): "
                    "split the data by patient"
                )
        seen[name] = patients


def _check_head(document: Any, spec: DatasetSpec, split: str, where: str) -> None:
    """Validate format, version, dataset, split and class lists of a document; FXError."""
    info = document.get("info") if isinstance(document, dict) else None
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise FXError(f"{where}: not an annotation file of {FORMAT} (info.format); prepare the dataset again")
    if info.get("format_version") != FORMAT_VERSION:
        version = info.get("format_version")
        raise FXError(f"{where}: format version {version}, this code reads {FORMAT_VERSION}; prepare the dataset again")
    for key, wanted in (("dataset", spec.name), ("split", split)):
        if info.get(key) != wanted:
            raise FXError(f"{where}: its {key} is {info.get(key)!r}, expected {wanted!r}")
    if not isinstance(info.get("image_root", ""), str):
        raise FXError(f"{where}: info.image_root must be a string, not {info['image_root']!r}")
    for key in ("classes", "categories", "images", "annotations"):
        if not isinstance(document.get(key), dict if key == "classes" else list):
            raise FXError(f"{where}: `{key}` is missing or of the wrong type; prepare the dataset again")
    for task in TASKS:
        found, wanted_classes = document["classes"].get(task), list(spec.classes(task))
        if found != wanted_classes:
            raise FXError(f"{where}: its {task} classes {found} are not those of {spec.name!r}: {wanted_classes}")
    categories = [(row.get("id"), row.get("name")) for row in document["categories"] if isinstance(row, dict)]
    if categories != list(enumerate(spec.loc_classes, start=1)):
        raise FXError(f"{where}: categories must be the loc classes with ids 1, 2, ... in order, not {categories}")


def _image_row(image: Mapping[str, Any], image_id: int, spec: DatasetSpec) -> dict[str, Any]:
    """The JSON entry of one image; malformed input raises an arbitrary exception."""
    strange = sorted(set(image) - set(_FIELDS))
    if strange:
        raise FXError(f"unknown key {strange[0]!r}; an image may have {list(_FIELDS)}")
    patient = image["patient_id"]
    row = {
        "id": image_id,
        "file_name": os.fspath(image["file_name"]),
        "width": _plain(image["width"]),
        "height": _plain(image["height"]),
        # Not a missing value such as NaN or None: str() would merge those images into one patient.
        "patient_id": str(patient) if isinstance(patient, Integral) else patient,
        "labels": _labels(image.get("labels")),
        "boxes_annotated": image.get("boxes") is not None,
        "masks": _masks(image.get("masks")),
    }
    if not spec.seg_classes and row["masks"] is not None:
        raise FXError(f"has masks, but the row {spec.name!r} has no seg classes")
    if image.get("study_id"):
        row["study_id"] = str(image["study_id"])
    row |= {key: _plain(image[key]) for key in ("intensity", "stored_size") if image.get(key) is not None}
    if image.get("meta"):
        try:
            row["meta"] = json.loads(json.dumps(dict(image["meta"]), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise FXError(f"meta {image['meta']!r} is not plain data: {error}") from None
    if image.get("ignore_mask") is not None:
        row["ignore_mask"] = _as_rle(image["ignore_mask"])
    return row


def _plain(value: Any) -> Any:
    """Tuples and NumPy scalars as JSON types."""
    return np.asarray(value).tolist()


def _labels(labels: Sequence[Any] | None) -> list[int | None] | None:
    """Labels as int or None; FXError for values other than 1, 0, -1, None, which are never rounded."""
    if labels is None:
        return None
    for value in labels:
        if value is not None and value not in (0, 1, -1):
            raise FXError(f"label {value!r} is not 1, 0, -1 (uncertain) or None (blank)")
    return [None if value is None else int(value) for value in labels]


def _masks(masks: Sequence[Any] | None) -> list[dict[str, Any] | None] | None:
    """Masks as RLEs or file entries; a list of only unknown masks counts as not annotated."""
    if masks is None or all(mask is None for mask in masks):
        return None
    return [None if mask is None else _as_file(mask) or _as_rle(mask) for mask in masks]


def _as_file(mask: Any) -> dict[str, Any] | None:
    """The entry of a mask stored in a file, or None."""
    return mask | {"file": os.fspath(mask["file"])} if isinstance(mask, dict) and "file" in mask else None


def _as_rle(mask: Any) -> Rle:
    """An RLE with str counts from an array or a pycocotools RLE (str or bytes counts)."""
    if isinstance(mask, np.ndarray):
        return encode_mask(mask)
    counts = mask.get("counts") if isinstance(mask, Mapping) else mask
    if not isinstance(mask, Mapping) or not isinstance(counts, str | bytes):
        raise FXError(f"a mask must be an array, a compressed RLE or a file; got {type(counts).__name__}")
    return {
        "size": [int(side) for side in mask["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _box_rows(boxes: Sequence[Any] | None, image_id: int, spec: DatasetSpec, first: int) -> list[dict[str, Any]]:
    """The annotations of one image, with ids from `first` on; exceptions as in `_image_row`."""
    rows = []
    for number, (name, box) in enumerate(boxes if boxes is not None else ()):
        if name not in spec.loc_classes:
            raise FXError(f"box class {name!r} is not one of {list(spec.loc_classes)}")
        if len(box) != 4:
            raise FXError(f"box {list(box)} of class {name!r} must be four numbers x, y, w, h")
        x, y, w, h = (float(value) for value in box)
        row: dict[str, Any] = {"id": first + number, "image_id": image_id}
        row |= {"category_id": spec.loc_classes.index(name) + 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        rows.append(row)
    return rows
