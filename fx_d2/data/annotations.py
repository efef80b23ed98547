"""The one annotation format: a superset of COCO detection json, one file per split, and `dataset.yaml` beside it.

Writer and loader share one validator, so that a file that was written can be read. Every error is an FXError that
names the file and the image or annotation.
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
from fx_d2.structures import TASKS, DatasetSpec, FXError

FORMAT = "fx_d2"
FORMAT_VERSION = 1
SPEC_FILE = "dataset.yaml"

_FIELDS = (
    "file_name", "width", "height", "patient_id", "study_id", "labels", "boxes", "masks", "ignore_mask", "intensity",
    "stored_size", "meta",
)  # fmt: skip
"""Keys of an image in `write_split`'s form."""


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
    """Write one split; the file appears complete or not at all.

    Args:
        path: the json to write, usually `<root>/<spec.name>/<split>.json`; its folder is made.
        spec: the dataset's row; class names and counts of the images are checked against it.
        split: "train", "val" or "test".
        image_root: folder of the images, absolute or relative to the json's folder.
        images: one mapping an image with `file_name` (relative to image_root), `width`, `height` (pixels),
            `patient_id` (text or whole number), and per task, None meaning not annotated: `labels` (list per cls class
            of 1, 0, -1 = uncertain, None = blank), `boxes` (list of (class name, [x, y, w, h] in pixels); empty list =
            true negative), `masks` (list per seg class of array (H, W), RLE, {"file": mask file relative to image_root,
            read when needed}, or None = unknown; all-zero = annotated and absent).
            Optional: `study_id`; `intensity` ([black, white] of the stored values, see `read_image`); `stored_size`
            (see `cache_images`); `ignore_mask` (array or RLE: pixels to leave out of loss and metrics); `meta` (plain
            data).
        source: where the data comes from; empty: the row's.
        licence: its terms; empty: the row's.
        release: version of the public release.

    Raises:
        FXError: an unknown key, and anything `load_split` would refuse, naming the image.
    """
    request = SplitRequest(Path(path), split, images, source, licence, release)
    write_splits([request], spec=spec, image_root=image_root)


@dataclass(frozen=True)
class SplitRequest:
    """One file for `write_splits`; the fields are `write_split`'s arguments."""

    path: Path
    split: str
    images: Sequence[Mapping[str, Any]]
    source: str = ""
    licence: str = ""
    release: str = ""


def write_splits(requests: Sequence[SplitRequest], *, spec: DatasetSpec, image_root: str | Path) -> None:
    """Write several splits of a dataset, as `write_split` does; a fault in any leaves all unwritten."""
    texts = [(request.path, _split_text(request, spec, image_root)) for request in requests]
    for path, text in texts:
        write_text(path, text)


def _split_text(request: SplitRequest, spec: DatasetSpec, image_root: str | Path) -> str:
    """The json of one split, validated."""
    path = request.path
    rows: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for image_id, image in enumerate(request.images, start=1):
        try:
            rows.append(_image_row(image, image_id, spec))
            boxes += _box_rows(image.get("boxes"), image_id, spec, first=len(boxes) + 1)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            name = image.get("file_name") if isinstance(image, Mapping) else image
            problem = {FXError: str(error), KeyError: f"lacks {error}"}.get(type(error), f"malformed ({error})")
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
    """ "sha256:..." of what an annotation document says: images, annotations, categories, classes; not of `info`."""
    content = {key: document[key] for key in ("images", "annotations", "categories", "classes")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def file_content_hash(path: str | Path) -> str:
    """`content_hash` of an annotation file, taken anew: where images lie and who wrote the file does not change it."""
    return content_hash(json.loads(Path(path).read_bytes()))


def load_split(path: str | Path, spec: DatasetSpec, split: str) -> list[dict[str, Any]]:
    """The validated Detectron2 dicts of one split, in the order of the file.

    Each dict: dataset, file_name (absolute), image_id, height, width, intensity ([black, white] or None), stored_size
    ([height, width] of the file where it is a smaller copy, or None), patient_id, study_id ("": not known), labels
    (list of 1, 0, -1, None, or None), annotated {task: bool}, annotations (list of {bbox, bbox_mode XYWH_ABS,
    category_id 0-based}), masks (list of RLE, {"file": absolute path} or None, or None; see `masks.image_masks`),
    ignore_mask (RLE or None), meta. `annotated["cls"]` is False for an image whose labels all
    become unknown under the row's policies. Image files are not touched: see `catalog.check_images`.

    Raises:
        FXError: a missing or broken file, another format or version, class lists that do not fit the row, no images,
            an image or annotation with wrong content (the message names it), or a content that `info.content_hash`,
            where there is one, does not fit.
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
            f"{where}: its content is not what info.content_hash says: it was changed or damaged after it was written; "
            "prepare the dataset again (after a deliberate change by hand, remove content_hash)"
        )
    return records


def write_spec(folder: str | Path, spec: DatasetSpec) -> None:
    """Write the row as `<folder>/dataset.yaml`, from which a dataset of one's own is registered."""
    text = yaml.safe_dump(spec.to_dict(), sort_keys=False, allow_unicode=True, width=120)
    write_text(Path(folder) / SPEC_FILE, text)


def load_spec(path: str | Path) -> DatasetSpec:
    """The row in a dataset.yaml (or in a folder that holds one); FXError naming file and key."""
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
    """Refuse a patient in two splits of one dataset.

    Args:
        splits: images (Detectron2 dicts or `write_split`'s mappings, with `patient_id`) by a name of the split.

    Raises:
        FXError: naming one such patient, both splits and how many there are.
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
    """Format, version, dataset, split and class lists of a document; FXError."""
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
        raise FXError(f"{where}: info.image_root must be a text, not {info['image_root']!r}")
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
    """The json row of one image; what is wrong with it raises whatever error comes first."""
    strange = sorted(set(image) - set(_FIELDS))
    if strange:
        raise FXError(f"unknown key {strange[0]!r}; an image may have {list(_FIELDS)}")
    patient = image["patient_id"]
    row = {
        "id": image_id,
        "file_name": os.fspath(image["file_name"]),
        "width": _plain(image["width"]),
        "height": _plain(image["height"]),
        # Not of a missing value such as NaN or None, which would make one patient of many.
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
    """Tuples and numbers of numpy as json's."""
    return np.asarray(value).tolist()


def _labels(labels: Sequence[Any] | None) -> list[int | None] | None:
    """Labels as json ints and nulls; values other than 1, 0, -1, None are an FXError and are never rounded."""
    if labels is None:
        return None
    for value in labels:
        if value is not None and value not in (0, 1, -1):
            raise FXError(f"label {value!r} is not 1, 0, -1 (uncertain) or None (blank)")
    return [None if value is None else int(value) for value in labels]


def _masks(masks: Sequence[Any] | None) -> list[dict[str, Any] | None] | None:
    """Masks as RLEs or names of files; a list of only unknown masks is no annotation."""
    if masks is None or all(mask is None for mask in masks):
        return None
    return [None if mask is None else _as_file(mask) or _as_rle(mask) for mask in masks]


def _as_file(mask: Any) -> dict[str, Any] | None:
    """A mask that is kept in a file, or None."""
    return mask | {"file": os.fspath(mask["file"])} if isinstance(mask, dict) and "file" in mask else None


def _as_rle(mask: Any) -> Rle:
    """An RLE with json counts from an array or from pycocotools' RLE (str or bytes counts)."""
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
    """The annotation rows of one image, with ids from `first` on; errors as `_image_row`."""
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


def write_text(path: Path, text: str) -> None:
    """Write a file through a temporary neighbour, so that no reader sees half of it; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
