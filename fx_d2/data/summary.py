"""Counts of a prepared dataset as a text table, next to the published counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools import mask as mask_api

from fx_d2.data.masks import image_masks
from fx_d2.structures import DatasetSpec


def count_table(spec: DatasetSpec, splits: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Tabulate images and patients per split, and labels, boxes and masks per class.

    Args:
        spec: the dataset row.
        splits: Detectron2 dicts by split.

    Returns:
        lines of text. Image counts that differ from the published ones show both. Labels are counted as
        positive/negative/blank, plus /uncertain if there are any; masks as non-empty/empty/unknown.
    """
    lines = [[spec.name, *splits]]
    lines.append(["images", *(_with_expected(spec, name, len(dicts)) for name, dicts in splits.items())])
    lines.append(["patients", *(str(len({d["patient_id"] for d in dicts})) for dicts in splits.values())])
    for i, name in enumerate(spec.cls_classes):
        lines.append([f"label {name}", *(_label_cell(dicts, i) for dicts in splits.values())])
    if spec.loc_classes:
        counts = [sum(d["annotated"]["loc"] for d in dicts) for dicts in splits.values()]
        lines.append(["images with boxes annotated", *map(str, counts)])
    for i, name in enumerate(spec.loc_classes):
        counts = [sum(b["category_id"] == i for d in dicts for b in d["annotations"]) for dicts in splits.values()]
        lines.append([f"box {name}", *map(str, counts)])
    for i, name in enumerate(spec.seg_classes):
        lines.append([f"mask {name}", *(_mask_cell(dicts, i) for dicts in splits.values())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if any(split == "total" for split, _ in spec.expected):
        rows.insert(2, f"images in all: {_with_expected(spec, 'total', sum(map(len, splits.values())))}")
    legend = "labels: positive/negative/blank[/uncertain]; masks: non-empty/empty/unknown"
    return "\n".join([*rows, legend])


def _with_expected(spec: DatasetSpec, split: str, count: int) -> str:
    expected = dict(spec.expected).get(split)
    return str(count) if expected in (None, count) else f"{count} (published: {expected})"


def _label_cell(dicts: Sequence[dict[str, Any]], i: int) -> str:
    values = Counter(None if d["labels"] is None else d["labels"][i] for d in dicts)
    cell = f"{values[1]}/{values[0]}/{values[None]}"
    return f"{cell}/{values[-1]}" if values[-1] else cell


def _mask_cell(dicts: Sequence[dict[str, Any]], i: int) -> str:
    masks = [image_masks(d | {"masks": d["masks"][i : i + 1]}) for d in dicts if d["masks"] is not None]
    rles = [rle for (rle,) in filter(None, masks) if rle is not None]
    filled = int((mask_api.area(rles) > 0).sum()) if rles else 0
    return f"{filled}/{len(rles) - filled}/{len(dicts) - len(rles)}"
