"""Generate a synthetic X-ray: from kinds of findings to an image with masks and boxes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .anatomy import SIDES, Scene, build_scene
from .canvas import Canvas
from .film import FilmStyle, expose
from .findings import KINDS
from .patient import Patient, sample_patient
from .skeleton import CLAVICLE_WIDTH, RIB_WIDTH

FAINT = 0.4
"""Strength of a finding that is labelled uncertain."""


@dataclass(frozen=True)
class Finding:
    """One instance of a finding.

    Attributes:
        kind: key of findings.KINDS.
        mask: bool (H, W), never empty.
        box: x, y, width, height in pixels: the extent of the mask.
    """

    kind: str
    mask: np.ndarray
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Drawing:
    """A synthetic X-ray and its ground truth.

    Attributes:
        image: uint8 (H, W).
        findings: all instances, including faint ones.
        patient: the patient, as drawn.
        lungs: side (-1 the patient's right, left in the image; +1 left) -> bool (H, W), including behind the heart.
        heart: bool (H, W), the silhouette.
        structures: the healthy anatomy by name, bool (H, W): left_lung and right_lung without heart and mediastinum,
            heart, left_clavicle and right_clavicle, and the posterior ribs R1..R10 and L1..L10. Left is the patient's.
    """

    image: np.ndarray
    findings: tuple[Finding, ...]
    patient: Patient
    lungs: dict[int, np.ndarray]
    heart: np.ndarray
    structures: Mapping[str, np.ndarray]


def draw(
    kinds: Sequence[str],
    seed: Sequence[int] | int,
    size: int,
    style: FilmStyle | None = None,
    faint: Collection[str] = (),
    patient_seed: Sequence[int] | int | None = None,
) -> Drawing:
    """Generate the chest X-ray of one patient.

    Args:
        kinds: findings to draw, keys of findings.KINDS; empty for a healthy chest.
        seed: seed of the image. The same arguments give the same pixels; the same seed with other `kinds` gives the
            same patient and exposure.
        size: height in pixels; `style.aspect` sets the width.
        style: appearance of the image; None for the default style.
        faint: the subset of `kinds` to draw faintly.
        patient_seed: seed of the patient, for several images of one patient; None: `seed`.

    Raises:
        ValueError: a finding without pixels, which should not occur from 64 pixels on.
    """
    style = style or FilmStyle()
    body, rng, film = _streams(seed)
    body = body if patient_seed is None else _streams(patient_seed)[0]
    patient = sample_patient(body)
    ordered = [kind for kind in KINDS if kind in kinds]
    for kind in ordered:
        prepare = KINDS[kind].prepare
        patient = prepare(patient, rng) if prepare else patient
    width = round(size * style.aspect)
    canvas = Canvas(size, width, patient.half_width, patient.apex, patient.span, patient.offset, patient.angle)
    scene = build_scene(patient, canvas, body)
    structures = _structures(scene)
    side = SIDES[int(rng.integers(2))]
    drawn: list[tuple[str, np.ndarray]] = []
    for kind in ordered:
        masks = KINDS[kind].draw(scene, rng, side, FAINT if kind in faint else 1.0)
        if KINDS[kind].replaces:
            taken = np.any(masks, axis=0)
            drawn = [(name, mask & ~taken if KINDS[name].group == "diffuse" else mask) for name, mask in drawn]
            scene.fields = {lung: seen & ~taken for lung, seen in scene.fields.items()}
        drawn += [(kind, mask) for mask in masks]
        if KINDS[kind].sided:
            scene.occupied |= np.any(masks, axis=0)
            side = -side
    image = expose(scene.attenuation(), canvas, style, film)
    found = tuple(Finding(kind, mask, box_of(mask)) for kind, mask in drawn)
    return Drawing(image, found, patient, scene.lungs, scene.heart, structures)


def _streams(seed: Sequence[int] | int) -> list[np.random.Generator]:
    """Random generators for patient, findings and exposure."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3)]


def _structures(scene: Scene) -> dict[str, np.ndarray]:
    """`Drawing.structures` of a scene without findings."""
    canvas, skeleton = scene.canvas, scene.skeleton
    masks = {"heart": scene.heart & (canvas.v < 1.0)}
    for side, name in zip(SIDES, ("right", "left"), strict=True):
        masks[f"{name}_lung"] = scene.fields[side]
        masks[f"{name}_clavicle"] = canvas.strokes([skeleton.clavicles[side]], CLAVICLE_WIDTH) > 0.5
    for (side, number), path in sorted(skeleton.ribs.items()):
        masks[f"{'R' if side < 0 else 'L'}{number}"] = canvas.strokes([path], RIB_WIDTH) > 0.5
    return masks


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Extent of a bool mask as x, y, width, height; ValueError for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("a finding has no pixels: use a larger image size")
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
