"""Images shared between datasets: known overlaps, duplicate search, and exclusion from training."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from fx_d2.data.cache import read_record
from fx_d2.data.fingerprint import FINE, SAME, correlation, film_print, similar_pairs
from fx_d2.files import write_atomic
from fx_d2.structures import FXError

FAMILIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("nih_chestxray14", "rsna_pneumonia", "chestx_det", "siim_acr", "node21"),
        "RSNA, ChestX-Det, SIIM-ACR and part of NODE21 are images of ChestX-ray14; 5,713 RSNA training images are in "
        "its official test list",
    ),
    (("nih_shenzhen", "nih_montgomery", "tbx11k"), "TBX11K's all_* lists include the Shenzhen and Montgomery images"),
    (("jsrt", "node21"), "NODE21 includes images of JSRT"),
    (
        ("vindr_cxr", "vindr_organs", "vindr_local"),
        "the same images with different annotations; their official splits agree",
    ),
)
"""Datasets known to share images, and a note on each."""

FORMAT = "fx_d2 exclusions"

Prints = Mapping[str, np.ndarray]
"""Coarse fingerprints (see `fingerprint.film_print`) by registered split, in the order of its dicts."""

Dicts = Mapping[str, Sequence[Mapping[str, Any]]]
"""Detectron2 dicts by registered split."""


@dataclass(frozen=True)
class Overlap:
    """A pair of duplicate images.

    Attributes:
        split, index: registered split, and index in its list of dicts.
        other, other_index: the same for the duplicate.
        similarity: correlation of the fine fingerprints.
    """

    split: str
    index: int
    other: str
    other_index: int
    similarity: float

    @property
    def turned(self) -> Overlap:
        """The same pair with the two images swapped."""
        return Overlap(self.other, self.other_index, self.split, self.index, self.similarity)


def known_families(rows: Iterable[str]) -> list[str]:
    """A line for each entry of `FAMILIES` that contains two or more of the datasets."""
    present = set(rows)
    return [
        f"{', '.join(shared)}: {text}"
        for names, text in FAMILIES
        if len(shared := [name for name in names if name in present]) > 1
    ]


def find_overlaps(dicts: Dicts, prints: Prints) -> list[Overlap]:
    """Find all duplicates within and across splits; candidate pairs are loaded again for the fine comparison.

    Raises:
        FXError: an image can no longer be read.
    """
    fine: dict[tuple[str, int], np.ndarray] = {}

    def look(split: str, index: int) -> np.ndarray:
        if (split, index) not in fine:
            fine[split, index] = film_print(read_record(dicts[split][index]), FINE)
        return fine[split, index]

    found = []
    for a, b in itertools.combinations_with_replacement(prints, 2):
        for i, j in similar_pairs(prints[a], prints[b]):
            if a == b and i >= j:
                continue
            similarity = correlation(look(a, i), look(b, j))
            if similarity >= SAME:
                found.append(Overlap(a, i, b, j, similarity))
    return found


def training_leaks(overlaps: Iterable[Overlap], held_out: Iterable[str] = ("test",)) -> list[Overlap]:
    """The overlaps between a training split and a held-out split, with the training image first."""
    both = (side for overlap in overlaps for side in (overlap, overlap.turned))
    ends = tuple(f"_{split}" for split in held_out)
    return [side for side in both if side.split.endswith("_train") and side.other.endswith(ends)]


def write_exclusions(path: Path, leaks: Sequence[Overlap], dicts: Dicts, *, by_patient: bool = False) -> dict[str, int]:
    """Write the training images to leave out, for DATASETS.EXCLUDE; returns image counts by split.

    Args:
        path: the JSON file to write.
        leaks: output of `training_leaks`.
        dicts: all splits involved.
        by_patient: also exclude the other training images of these patients.
    """
    reasons: dict[str, dict[int, str]] = defaultdict(dict)
    for leak in leaks:
        other = dicts[leak.other][leak.other_index]["file_name"]
        reasons[leak.split].setdefault(leak.index, f"{leak.other}: {other} (similarity {leak.similarity:.2f})")
    if by_patient:
        for split, found in reasons.items():
            patients = {dicts[split][index]["patient_id"]: index for index in found}
            for index, record in enumerate(dicts[split]):
                if record["patient_id"] in patients:
                    first = dicts[split][patients[record["patient_id"]]]["file_name"]
                    found.setdefault(index, f"same patient as {first}")
    splits = {
        split: {
            "annotations": annotation_digest(split),
            "images": [
                {
                    "image_id": dicts[split][index]["image_id"],
                    "file_name": dicts[split][index]["file_name"],
                    "reason": reason,
                }
                for index, reason in sorted(found.items())
            ],
        }
        for split, found in reasons.items()
    }
    write_atomic(path, json.dumps({"format": FORMAT, "splits": splits}, indent=1))
    return {split: len(found) for split, found in reasons.items()}


def excluded_images(path: str | Path, registered: str) -> frozenset[int]:
    """The image ids of a registered split listed in an exclusion file.

    Raises:
        FXError: a missing or invalid file; or the split has been prepared again since.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        if document["format"] != FORMAT:
            raise ValueError
        split = document["splits"].get(registered)
        if split is None:
            return frozenset()
        digest, ids = split["annotations"], frozenset(image["image_id"] for image in split["images"])
    except FileNotFoundError:
        raise FXError(f"DATASETS.EXCLUDE: {path} not found: tools/check_datasets.py --exclude writes it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FXError(f"DATASETS.EXCLUDE: {path} is not a file that tools/check_datasets.py --exclude wrote") from None
    if digest != annotation_digest(registered):
        raise FXError(
            f"DATASETS.EXCLUDE: {path} was written for other annotations of {registered}: the dataset has been "
            "prepared again; rerun tools/check_datasets.py --exclude"
        )
    return ids


def annotation_digest(registered: str) -> str:
    """SHA-256 of the annotation file of a registered split."""
    with open(MetadataCatalog.get(registered).json_file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
