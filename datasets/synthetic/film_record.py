"""A synthetic X-ray with patient data, and annotations in the classes of a dataset."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Instance:
    """One annotated finding.

    Attributes:
        kind: key of findings.KINDS.
        name: a class of the dataset row.
        box: x, y, width, height in pixels: the extent of the mask.
        mask: bool (H, W), never empty.
    """

    kind: str
    name: str
    box: tuple[int, int, int, int]
    mask: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Film:
    """One synthetic X-ray of a dataset.

    Attributes:
        dataset: name of the dataset row.
        split: "train", "val" or "test": the official split if the release has one.
        number: index over all splits of the dataset, from 0.
        patient: number of the patient; some patients have two consecutive images.
        follow_up: 0 for the first image of a patient, 1 for the second.
        image: uint8 (H, W).
        sex: "F" or "M".
        age: years.
        kinds: all findings except faint ones, keys of findings.KINDS.
        labels: classification class -> 1, 0, -1 (uncertain) or None (blank).
        instances: findings with a class name, except faint ones, one instance per name.
        structures: the anatomy, see draw.Drawing.
    """

    dataset: str
    split: str
    number: int
    patient: int
    follow_up: int
    image: np.ndarray
    sex: str
    age: int
    kinds: tuple[str, ...]
    labels: Mapping[str, int | None]
    instances: tuple[Instance, ...]
    structures: Mapping[str, np.ndarray]

    def digest(self, what: str = "image") -> str:
        """A 32-digit hexadecimal identifier of `what` of this image; "patient" is shared by all images of a patient."""
        number = self.patient if what == "patient" else self.number
        return hashlib.md5(f"{self.dataset}/{what}/{number}".encode(), usedforsecurity=False).hexdigest()

    def rng(self, what: str) -> np.random.Generator:
        """A separate random generator for details that a writer invents, such as the variation of a reader."""
        return np.random.default_rng([self.number, zlib.crc32(f"{self.dataset}/{what}".encode())])

    def merged(self, name: str) -> np.ndarray:
        """The union bool (H, W) of the masks of a class; all False without one."""
        masks = [instance.mask for instance in self.instances if instance.name == name]
        return np.any([np.zeros(self.image.shape, bool), *masks], axis=0)
