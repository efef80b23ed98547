"""Galleries of errors: the worst images, false positives and misses of each task."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_utils

from fx_d2.data import file_content_hash, get_dicts, read_full_size, register_datasets
from fx_d2.engine import build_cfg
from fx_d2.evaluation import read_all_predictions, read_scores
from fx_d2.evaluation.matching import HIT, MISS
from fx_d2.reporting.baselines import title_of
from fx_d2.reporting.document import Figure, Section, slug
from fx_d2.reporting.recipe import at
from fx_d2.reporting.runs import Results
from fx_d2.structures import FXError, spec_of
from fx_d2.visualization import draw_comparison, predicted_findings, truth_findings

logger = logging.getLogger(__name__)

WIDTH = 1500
"""Width of an embedded image in pixels; its text is still legible."""

KINDS = ("worst", "false", "missed")

TITLES = {
    "cls": ("largest mean error", "absent class, highest probability", "present class, lowest probability"),
    "loc": ("lowest F1", "false positives with the highest score", "most missed boxes"),
    "seg": ("lowest mean Dice", "largest mask of an absent class", "lowest Dice of a present class"),
}
"""Titles of KINDS. Only boxes have a score threshold that makes them false positives or misses."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An image selected for a gallery.

    Attributes:
        index: position among the images of the scores file.
        error: the error it was selected by, larger = worse.
        reason: description of the error for the caption.
    """

    index: int
    error: float
    reason: str


def choose_images(
    task: str, arrays: Arrays, number: int, *, threshold: float, areas: np.ndarray | None = None
) -> dict[str, list[Choice]]:
    """The images with the largest errors of each of KINDS, largest first, ties in the order of the split.

    Classification: mean distance of the probabilities from the known labels; the highest probability of an absent
    class; the lowest of a present class. Localization, at IoU 0.40: 1 - F1 of the boxes with score >= `threshold`; the
    highest score of a false positive; the number of missed ground-truth boxes. Segmentation: 1 - mean Dice; the area of
    a mask predicted for an absent class; 1 - Dice of a present class. Images without an error of a kind are not listed.

    Args:
        task: the task.
        arrays: content of a scores file.
        number: maximum number of images per kind.
        threshold: minimum score of the boxes that count.
        areas: (N, C) predicted pixels of each mask; None = all false masks count as equal.
    """
    errors = {"cls": _label_errors, "loc": _box_errors, "seg": _mask_errors}[task](arrays, threshold, areas)
    found = {}
    for kind, rows in errors.items():
        ranked = sorted((row for row in rows if row.error > 0), key=lambda row: (-row.error, row.index))
        found[kind] = ranked[:number]
    return found


def _label_errors(arrays: Arrays, threshold: float, areas: np.ndarray | None) -> dict[str, list[Choice]]:
    names = arrays["cls_classes"].tolist()
    found: dict[str, list[Choice]] = {kind: [] for kind in KINDS}
    for index, (scores, labels) in enumerate(zip(arrays["cls_scores"], arrays["cls_labels"], strict=True)):
        known = ~np.isnan(labels)
        if not known.any():
            continue
        distance = np.abs(scores - labels)
        mean = float(distance[known].mean())
        found["worst"].append(
            Choice(index=index, error=mean, reason=f"mean error {mean:.2f}, known labels: {known.sum()}")
        )
        for kind, label, word in (("false", 0, "absent"), ("missed", 1, "present")):
            if (labels == label).any():
                worst = int(np.where(labels == label, distance, -1).argmax())
                reason = f"{names[worst]}: probability {scores[worst]:.2f}, {word}"
                found[kind].append(Choice(index=index, error=float(distance[worst]), reason=reason))
    return found


def _box_errors(arrays: Arrays, threshold: float, areas: np.ndarray | None) -> dict[str, list[Choice]]:
    names = arrays["loc_classes"].tolist()
    found: dict[str, list[Choice]] = {kind: [] for kind in KINDS}
    counted = np.flatnonzero(arrays["loc_score"] >= threshold)  # a few of up to 100 per image
    images = arrays["loc_image"][counted]
    for index, truth in enumerate(arrays["loc_truth"]):
        if (truth < 0).any():
            continue
        mine = counted[images == index]
        hits, scores, classes = arrays["loc_hits"][mine, 0], arrays["loc_score"][mine], arrays["loc_class"][mine]
        total, right, wrong = int(truth.sum()), int((hits == HIT).sum()), int((hits == MISS).sum())
        missed = total - right
        shown = f"{right} of {total} ground-truth boxes detected, {wrong} FP"
        f1 = 2 * right / (2 * right + wrong + missed) if total or wrong else 1.0
        found["worst"].append(Choice(index=index, error=1 - f1, reason=f"{shown}, F1 {f1:.2f}"))
        found["missed"].append(Choice(index=index, error=float(missed), reason=f"{shown}, {missed} missed"))
        if wrong:
            best = int(np.where(hits == MISS, scores, -1).argmax())
            reason = f"{shown}; {names[classes[best]]} with score {scores[best]:.2f}"
            found["false"].append(Choice(index=index, error=float(scores[best]), reason=reason))
    return found


def _mask_errors(arrays: Arrays, threshold: float, areas: np.ndarray | None) -> dict[str, list[Choice]]:
    names = arrays["seg_classes"].tolist()
    found: dict[str, list[Choice]] = {kind: [] for kind in KINDS}
    for index, (dice, positive) in enumerate(zip(arrays["seg_dice"], arrays["seg_positive"], strict=True)):
        if np.isnan(dice).all():
            continue
        mean = float(np.nanmean(dice))
        found["worst"].append(Choice(index=index, error=1 - mean, reason=f"mean Dice {mean:.2f}"))
        # With empty ground truth Dice is 1, or 0 if anything is predicted.
        alarm = np.where((positive == 0) & (dice == 0), 1.0 if areas is None else areas[index], 0.0)
        worst = int(alarm.argmax())
        size = "" if areas is None else f", {alarm[worst]:.0f} pixels predicted"
        found["false"].append(
            Choice(index=index, error=float(alarm[worst]), reason=f"{names[worst]}: ground truth empty{size}")
        )
        lost = np.where(positive == 1, 1 - dice, 0.0)
        worst = int(lost.argmax())
        reason = f"{names[worst]}: Dice {dice[worst]:.2f}"
        found["missed"].append(Choice(index=index, error=float(lost[worst]), reason=reason))
    return found


def galleries(results: Results, run: str, root: str, number: int, *, threshold: float = 0.3) -> Section:
    """Images of the first model's errors on every split whose images are available.

    Splits that are left out for the same reason share a sentence.

    Args:
        results: an evaluation with scores and predictions files.
        run: name of the run.
        root: folder of prepared datasets; empty = that of the evaluation's config.
        number: images per kind and task.
        threshold: minimum score of the boxes that are drawn and counted.
    """
    which, parts = results.models[0], []
    missing: dict[str, list[str]] = {}
    try:
        _, records = read_all_predictions(results.folder / "inference" / f"predictions_{which}.json", threshold)
    except FXError as error:
        records, missing[str(error)] = {}, []
    for split in results.splits if records else ():
        try:
            chooser = _Gallery(results, run, split, root, records.get(split, {}), threshold)
            parts.append(chooser.section(number))
        except FXError as error:
            missing.setdefault(str(error), []).append(split)
    left_out = [f"No images shown{' for ' * bool(names)}{', '.join(names)}: {why}" for why, names in missing.items()]
    for line in left_out:
        logger.warning("%s: %s", run, line)
    text = (
        f"Ground truth next to the prediction of the {which}, largest errors first; boxes with score >= {threshold:g}. "
        "Click an image to enlarge it, click again to close it.",
    )
    return Section(
        key=slug(f"gallery-{run}"),
        title="Images by error",
        text=(*(text if parts else ()), *left_out),
        parts=tuple(parts),
        folded=True,
    )


class _Gallery:
    """Gallery of one split of an evaluation; each image is drawn once."""

    def __init__(
        self, results: Results, run: str, split: str, root: str, records: Mapping[int, dict[str, Any]], threshold: float
    ) -> None:
        self._which, self._run, self._split, self._records = results.models[0], run, split, records
        self._tasks, self._threshold = results.tasks(split), threshold
        self._samples = _samples(results, split, root)
        file = results.scores.get(f"{self._which}/{results.splits[split]}")
        if file is None:
            raise FXError("the evaluation saved no per-image scores; TEST.SAVE_SCORES True saves them")
        self._arrays = read_scores(results.folder / file)
        self._drawn: dict[int, tuple[str, tuple[int, int]]] = {}

    def section(self, number: int) -> Section:
        """The images of each task and kind."""
        parts = []
        for task in self._tasks:
            chosen = choose_images(task, self._arrays, number, threshold=self._threshold, areas=self._areas(task))
            for kind, choices in chosen.items():
                key = slug(f"picture-{self._run}-{self._split}-{task}-{kind}")
                shown = tuple(self._draw(choice, f"{key}-{i}") for i, choice in enumerate(choices))
                if shown:
                    title = TITLES[task][KINDS.index(kind)]
                    parts.append(Section(key=key, title=f"{task}: {title}", pictures=shown))
        dataset, _, split = self._split.rpartition("_")
        key = slug(f"gallery-{self._run}-{self._split}")
        return Section(key=key, title=f"{title_of(dataset)} ({split})", parts=tuple(parts), folded=True)

    def _areas(self, task: str) -> np.ndarray | None:
        """Predicted pixels of each mask, (N, C)."""
        if task != "seg":
            return None
        ids, count = self._arrays["image_id"].tolist(), len(self._arrays["seg_classes"])
        masks = (self._records.get(image, {}).get("masks") for image in ids)
        rows = [[int(mask_utils.area(mask)) for mask in row] if row else [0] * count for row in masks]
        return np.array(rows, np.float64).reshape(len(ids), count)

    def _draw(self, choice: Choice, key: str) -> Figure:
        """The figure of an image, captioned with the reason for showing it."""
        image = int(self._arrays["image_id"][choice.index])
        if image not in self._drawn:
            self._drawn[image] = self._embed(image)
        uri, (width, height) = self._drawn[image]
        name = Path(str(self._arrays["file_name"][choice.index])).name
        known = [
            f"{k} {self._arrays[k][choice.index]}" for k in ("sex", "age", "view") if self._arrays[k][choice.index]
        ]
        caption = (choice.reason, ", ".join((f"image {image}: {name}", *known)))
        alt = f"X-ray {name} of {self._split}, annotation next to prediction; {choice.reason}"
        return Figure(key=key, uri=uri, alt=alt, caption=caption, width=width, height=height)

    def _embed(self, image: int) -> tuple[str, tuple[int, int]]:
        sample, record = self._samples.get(image), self._records.get(image)
        if sample is None or record is None or Path(record["file_name"]).name != Path(sample["file_name"]).name:
            raise FXError(f"image {image} in the dataset is not the one that was evaluated: evaluate again")
        drawn = draw_comparison(
            read_full_size(sample),
            spec_of(self._split),
            truth_findings(sample),
            predicted_findings(record, self._threshold),
            which=self._which,
            caption=f"{self._split}   {Path(sample['file_name']).name}",
        )
        picture = Image.fromarray(drawn)
        size = WIDTH, round(picture.height * WIDTH / picture.width)
        stream = io.BytesIO()
        picture.resize(size, Image.Resampling.LANCZOS).save(stream, "WEBP", quality=75, method=4)
        return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}", size


def _samples(results: Results, split: str, root: str) -> dict[int, dict[str, Any]]:
    """Dataset dicts of the split by image id; FXError if it is not available, or differs from what was evaluated."""
    known = at(results.settings, "DATASETS") or {}
    options = ["DATASETS.ROOT", root or known.get("ROOT") or "", "DATASETS.TEST", f"('{split}',)"]
    # Keys that restrict the dataset rows: predictions only have the classes in use.
    options += [word for key in ("TASKS", "CLASSES") if key in known for word in (f"DATASETS.{key}", str(known[key]))]
    register_datasets(build_cfg("", options))
    file = MetadataCatalog.get(split).json_file
    if file_content_hash(file) != results.hashes.get(split):
        raise FXError(f"{file} is not the annotation file that was evaluated")
    return {sample["image_id"]: sample for sample in get_dicts(split)}
