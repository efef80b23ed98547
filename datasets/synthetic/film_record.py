"""A drawn film as a hospital would know it: picture, patient, and what a dataset says about it in its own words."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Instance:
    """One finding in a dataset's words.

    Attributes:
        kind: key of findings.KINDS.
        name: a class of the dataset's row.
        box: x, y, width, height in pixels: the extent of the mask.
        mask: bool (H, W), never empty.
    """

    kind: str
    name: str
    box: tuple[int, int, int, int]
    mask: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Film:
    """One film of a dataset.

    Attributes:
        dataset: name of the row.
        split: "train", "val" or "test": what the release says where it has splits.
        number: counts from 0 over all splits of the dataset.
        patient: number of the patient; now and then two films in succession are of one patient.
        follow_up: 0 for a patient's first film, 1 for the second.
        image: uint8 (H, W).
        sex: "F" or "M".
        age: years.
        kinds: everything drawn plainly, keys of findings.KINDS.
        labels: class of the row's classification -> 1, 0, -1 (uncertain) or None (blank).
        instances: findings drawn plainly that have a class name, one instance a name; with boxes and masks.
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
        """32 hexadecimal digits that stand for `what` of this film; those of "patient" are one for all its films."""
        number = self.patient if what == "patient" else self.number
        return hashlib.md5(f"{self.dataset}/{what}/{number}".encode(), usedforsecurity=False).hexdigest()

    def rng(self, what: str) -> np.random.Generator:
        """A generator of its own for `what` a writer invents, such as a reader's hand."""
        return np.random.default_rng([self.number, zlib.crc32(f"{self.dataset}/{what}".encode())])

    def merged(self, name: str) -> np.ndarray:
        """The union bool (H, W) of the masks of a class; all False without one."""
        masks = [instance.mask for instance in self.instances if instance.name == name]
        return np.any([np.zeros(self.image.shape, bool), *masks], axis=0)
