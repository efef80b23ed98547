"""Registry of findings: how each is drawn and how it changes the patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from . import lesions, organs, pleura
from .anatomy import Scene
from .patient import Patient

Drawer = Callable[[Scene, np.random.Generator, int, float], list[np.ndarray]]
Preparer = Callable[[Patient, np.random.Generator], Patient]


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        draw: draws it and returns one mask per instance.
        prepare: modifies the patient before drawing, for findings that change the anatomy.
        sided: affects one lung, so that two such findings can be on different sides.
        replaces: replaces lung tissue, so diffuse and later findings exclude its area.
        group: an image has at most one finding of each group, as they hide or contradict each other.
    """

    draw: Drawer
    prepare: Preparer | None = None
    sided: bool = True
    replaces: bool = False
    group: str = ""


def _enlarge_heart(patient: Patient, rng: np.random.Generator) -> Patient:
    return replace(patient, ctr=rng.uniform(0.58, 0.68))


def _widen_mediastinum(patient: Patient, rng: np.random.Generator) -> Patient:
    return replace(patient, mediastinum=rng.uniform(1.8, 2.2))


def _inflate(patient: Patient, rng: np.random.Generator) -> Patient:
    apex = max(0.06, patient.apex - 0.02)
    return replace(
        patient,
        doming=rng.uniform(0.1, 0.3),
        lucency=rng.uniform(1.2, 1.28),
        ctr=patient.ctr * 0.86,
        apex=apex,
        span=min(patient.span * 1.08, 0.95 - apex),
    )


KINDS: dict[str, Kind] = {
    "cardiomegaly": Kind(organs.cardiomegaly, _enlarge_heart, sided=False, group="centre"),
    "wide_mediastinum": Kind(organs.wide_mediastinum, _widen_mediastinum, sided=False, group="centre"),
    "emphysema": Kind(lesions.emphysema, _inflate, sided=False, group="diffuse"),
    "edema": Kind(lesions.edema, sided=False, group="diffuse"),
    "diffuse_nodules": Kind(lesions.diffuse_nodules, sided=False, group="diffuse"),
    "fibrosis": Kind(lesions.fibrosis, sided=False, group="diffuse"),
    "pneumothorax": Kind(pleura.pneumothorax, replaces=True),
    "effusion": Kind(pleura.effusion, replaces=True),
    "pleural_thickening": Kind(pleura.pleural_thickening, replaces=True),
    "tuberculosis": Kind(lesions.tuberculosis),
    "consolidation": Kind(lesions.consolidation),
    "pneumonia": Kind(lesions.pneumonia),
    "infiltration": Kind(lesions.infiltration),
    "opacity": Kind(lesions.opacity),
    "mass": Kind(lesions.mass),
    "atelectasis": Kind(lesions.atelectasis),
    "nodule": Kind(lesions.nodule, group="diffuse"),
    "calcification": Kind(lesions.calcification),
    "hernia": Kind(organs.hernia, sided=False, group="centre"),
    "fracture": Kind(organs.fracture),
    "devices": Kind(organs.devices),
}
"""All kinds, in drawing order."""


def compatible(kinds: list[str], other: str) -> bool:
    """Whether `other` can be added to an image with these kinds."""
    group = KINDS[other].group
    return other not in kinds and not (group and any(KINDS[kind].group == group for kind in kinds))
