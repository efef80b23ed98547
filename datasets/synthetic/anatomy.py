"""The healthy chest as layers of X-ray attenuation, from outlines measured on adult PA radiographs.

Attenuation is in units of the soft tissue of an average chest wall: 0 is air outside the body, about 0.4 aerated
lung, 1 soft tissue, 1.2 mediastinum and abdomen. Sides: -1 is the patient's right (left in the image), +1 the left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .canvas import Canvas, curve, smooth
from .patient import Patient
from .skeleton import Skeleton, draw_skeleton

SIDES = (-1, 1)


@dataclass
class Scene:
    """A chest under construction; findings modify its layers in place.

    Attributes:
        canvas: canvas to draw on.
        patient: the patient.
        soft: float32 (H, W), attenuation of soft tissue, lungs subtracted.
        markings: float32 (H, W), attenuation of the lung vessels.
        skeleton: bone layer and rib paths.
        overlay: float32 (H, W), attenuation on top of everything else (devices).
        lungs: side -> bool (H, W), the whole lung, including behind the heart.
        fields: side -> bool (H, W), the visible lung: without heart and mediastinum.
        outlines: side -> (N, 2) thorax coordinates of the whole lung.
        heart: bool (H, W), the heart's silhouette.
        mediastinum: bool (H, W), the silhouette of heart and great vessels.
        occupied: bool (H, W), pixels already covered by a finding.
    """

    canvas: Canvas
    patient: Patient
    soft: np.ndarray
    markings: np.ndarray
    skeleton: Skeleton
    overlay: np.ndarray
    lungs: dict[int, np.ndarray]
    fields: dict[int, np.ndarray]
    outlines: dict[int, np.ndarray]
    heart: np.ndarray
    mediastinum: np.ndarray
    occupied: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Start without findings."""
        self.occupied = np.zeros(self.soft.shape, bool)

    def attenuation(self) -> np.ndarray:
        """The sum of all layers; float32 (H, W)."""
        return self.soft + self.markings + self.skeleton.layer + self.overlay


def lung_outline(patient: Patient, side: int) -> np.ndarray:
    """Closed outline (N, 2) of one whole lung in thorax coordinates."""
    lower = 0.0 if side < 0 else 0.035
    dome = patient.doming
    lateral = [(0.33, 0.0), (0.56, 0.055), (0.74, 0.15), (0.86, 0.28), (0.925, 0.43), (0.96, 0.58), (0.985, 0.74)]
    lateral += [(1.0, 0.88), (0.985, 1.0)]
    floor = [(0.9, 0.955), (0.74, 0.905), (0.55, 0.878), (0.36, 0.882), (0.2, 0.905), (0.1, 0.925)]
    floor = [(u, 0.985 - (0.985 - v) * dome + lower) for u, v in floor]
    medial = [(0.09, 0.7), (0.09, 0.45), (0.1, 0.25), (0.13, 0.1), (0.2, 0.02)]
    crown = curve([medial[-2], medial[-1], *lateral[:-1]], 70)
    base = curve([lateral[-2], lateral[-1]], 4)
    outline = np.vstack([crown, base, curve(floor, 40), np.asarray(medial[:-2])])
    return outline * (side, 1)


def heart_outline(patient: Patient) -> np.ndarray:
    """Closed outline of the heart: the apex points to the patient's left, the width follows `patient.ctr`."""
    k = patient.ctr / 0.446
    sag = 0.06 * max(0.0, k - 1)
    right = [(-0.10, 0.50), (-0.21, 0.58), (-0.262, 0.68), (-0.262, 0.78), (-0.2, 0.88), (-0.08, 0.95)]
    left = [(0.2, 0.985), (0.44, 0.965), (0.605, 0.90), (0.63, 0.82), (0.545, 0.71), (0.40, 0.60), (0.25, 0.505)]
    points = [(u * k, 0.5 + (v - 0.5) * (0.94 + 0.08 * k) + sag * (v > 0.8)) for u, v in [*right, *left, (0.06, 0.46)]]
    return curve(points, 90, closed=True)


def vessel_outline(patient: Patient) -> np.ndarray:
    """Closed outline of the upper mediastinum: superior vena cava on the right, aortic knob and pulmonary trunk."""
    k = patient.mediastinum
    knob = 0.18 + 0.001 * (patient.age - 50)
    right = [(-0.13, 0.06), (-0.125, 0.2), (-0.135, 0.33), (-0.16, 0.46), (-0.19, 0.56)]
    left = [
        (0.26, 0.56),
        (0.235, 0.46),
        (0.165, 0.385),
        (knob, 0.315),
        (knob * 0.92, 0.265),
        (0.125, 0.2),
        (0.13, 0.06),
    ]
    points = [(u * k, v) for u, v in [(-0.14, -0.2), *right, (0.0, 0.62), *left, (0.14, -0.2)]]
    return curve(points, 120, closed=True)


def build_scene(patient: Patient, canvas: Canvas, rng: np.random.Generator) -> Scene:
    """Draw a healthy chest of this patient, on a canvas created for the same patient."""
    outlines = {side: lung_outline(patient, side) for side in SIDES}
    plates = {side: canvas.polygon(outlines[side]) for side in SIDES}
    heart_plate = canvas.polygon(heart_outline(patient))
    vessel_plate = canvas.polygon(vessel_outline(patient))
    lungs = {side: plates[side] > 0.5 for side in SIDES}
    heart = heart_plate > 0.5
    mediastinum = heart | (vessel_plate > 0.5)
    fields = {side: lungs[side] & ~mediastinum for side in SIDES}
    soft = _trunk(canvas, patient, rng)
    soft = soft + _abdomen(canvas, patient, outlines, rng)
    air = sum(canvas.blur(_air(canvas, plates[side], lungs[side]), 0.0025) for side in SIDES)
    soft = soft * (1 - 0.64 * patient.lucency * air)
    soft = soft + _mediastinum(canvas, heart_plate, vessel_plate, heart)
    soft = soft - _airways(canvas)
    soft = soft + _breasts(canvas, patient)
    markings = _vessels(canvas, rng) * (plates[-1] + plates[1]) * (1 - 0.6 * mediastinum)
    skeleton = draw_skeleton(canvas, patient, rng)
    skeleton.layer *= 1 - 0.45 * canvas.blur(mediastinum.astype(np.float32), 0.004)
    return Scene(
        canvas=canvas,
        patient=patient,
        soft=soft.astype(np.float32),
        markings=markings.astype(np.float32),
        skeleton=skeleton,
        overlay=np.zeros_like(soft, dtype=np.float32),
        lungs=lungs,
        fields=fields,
        outlines=outlines,
        heart=heart,
        mediastinum=mediastinum,
    )


def _air(canvas: Canvas, plate: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """Fraction of air along the ray, 0..1: decreasing towards the lung border, as in a rounded body, and the spine."""
    return (
        (0.45 + 0.55 * smooth(np.abs(canvas.u), 0.05, 0.42))
        * plate
        * (0.52 + 0.48 * np.sqrt(smooth(canvas.depth(lung), 0.0, 0.11)))
    )


def _trunk(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> np.ndarray:
    """Soft tissue of trunk, neck, shoulders and arms, with rounded borders."""
    wall = 1.11 + 0.2 * patient.fat
    right = [(0.27, -0.35), (0.29, -0.17), (0.5, -0.075), (0.95, -0.03), (1.3, 0.05), (1.4, 0.2), (1.24, 0.36)]
    right += [(wall + 0.05, 0.5), (wall, 0.68), (wall, 0.9), (wall + 0.05, 1.15), (wall + 0.07, 1.6)]
    plate = np.zeros(canvas.u.shape, np.float32)
    body = np.vstack([curve(right, 60), curve(right, 60)[::-1] * (-1, 1)])
    plate = np.maximum(plate, canvas.polygon(body))
    for side in SIDES:
        gap = patient.arms + rng.uniform(0, 0.05)
        arm = [(0.9, -0.035), (1.35, 0.0), (1.72, 0.16), (2.0, 0.5), (2.2, 1.3), (1.75 + gap, 1.3), (1.42 + gap, 0.75)]
        arm += [(wall + 0.13 + gap, 0.45), (1.15, 0.3)]
        plate = np.maximum(plate, canvas.polygon(curve(arm, 60, closed=True) * (side, 1)))
    inside = plate > 0.5
    rim = 0.06 + 0.03 * patient.fat
    profile = canvas.blur((0.25 + 0.75 * np.sqrt(np.clip(canvas.depth(inside) / rim, 0, 1))) * plate, 0.003)
    thick = 0.86 + 0.2 * patient.fat
    lateral = 1 - 0.17 * smooth(np.abs(canvas.u), 0.9, 1.7)
    upper = 1 - 0.3 * smooth(canvas.v, 0.08, -0.2)
    return thick * profile * lateral * upper * (1 + 0.025 * canvas.noise(rng, 0.2, 2))


def _abdomen(canvas: Canvas, patient: Patient, outlines: dict[int, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Liver, spleen and stomach below the domes, thicker than the chest wall, with the stomach's gas bubble."""
    floors = []
    for side in SIDES:
        floor = outlines[side][74:114] * (side, 1)
        floors.append(floor[::-1] * (side, 1) if side > 0 else floor * (side, 1))
    line = np.vstack([floors[0], floors[1]])
    below = np.vstack([[(-1.05, 1.0)], line, [(1.05, 1.02), (1.2, 1.9), (-1.2, 1.9)]])
    dense = 0.27 * canvas.blur(canvas.polygon(below), 0.003) * smooth(np.abs(canvas.u), 1.15, 0.75)
    if patient.stomach:
        place = (rng.uniform(0.35, 0.6), 1.0 + 0.035 + rng.uniform(0.02, 0.05))
        bubble = smooth(canvas.radius(*place) * (1 + 0.12 * canvas.noise(rng, 0.12, 2)), patient.stomach * 0.6, 0.02)
        dense = dense - 0.3 * bubble * smooth(canvas.v, 0.92, 0.99) * smooth(canvas.u, 0.04, 0.12)
    return dense


def _mediastinum(canvas: Canvas, heart_plate: np.ndarray, vessel_plate: np.ndarray, heart: np.ndarray) -> np.ndarray:
    """Attenuation of heart and great vessels, where they displace lung."""
    body = np.sqrt(smooth(canvas.depth(heart), 0, 0.13))
    thick = canvas.blur(heart_plate, 0.004) * (0.34 + 0.26 * body)
    vessels = 0.27 * canvas.blur(vessel_plate, 0.005) * smooth(canvas.v, -0.16, 0.12)
    spine = 0.09 * smooth(np.abs(canvas.u), 0.2, 0.06) * smooth(canvas.v, -0.25, 0.45)
    fade = smooth(canvas.v, 1.08, 0.86)
    return canvas.blur(np.maximum(thick, vessels) * fade, 0.004) + spine


def _airways(canvas: Canvas) -> np.ndarray:
    """Trachea and main bronchi: dark columns in the mediastinum."""
    trachea = canvas.strokes([curve([(0.0, -0.3), (0.0, 0.0), (-0.01, 0.2), (-0.02, 0.33)])], 0.034)
    trachea = trachea * smooth(canvas.v, 0.37, 0.24)
    right = canvas.strokes([curve([(-0.02, 0.345), (-0.1, 0.41), (-0.2, 0.47)])], 0.024)
    left = canvas.strokes([curve([(-0.02, 0.345), (0.09, 0.42), (0.22, 0.475)])], 0.022)
    return canvas.blur(0.24 * trachea + 0.1 * np.maximum(right, left) * (1 - trachea), 0.006)


def _breasts(canvas: Canvas, patient: Patient) -> np.ndarray:
    """Breast shadows over the lower zones (women), or the faint pectoral folds (men)."""
    total = np.zeros(canvas.u.shape, np.float32)
    female = patient.sex == "F"
    for side in SIDES:
        if female:
            du, dv = (
                (canvas.u * side - 0.66) / (0.44 + 0.1 * patient.fat),
                (canvas.v - 0.74) / (0.24 + 0.1 * patient.fat),
            )
            r = np.sqrt(du**2 + dv**2)
            total += (0.11 + 0.12 * patient.fat) * smooth(r, 1.0, 0.86) * smooth(dv, -0.9, 0.6)
        else:
            total += 0.05 * smooth(canvas.v - 0.25 * (canvas.u * side), 0.33, 0.2) * smooth(canvas.u * side, 0.3, 0.7)
    return canvas.blur(total, 0.004)


def _vessels(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Hila and the branching vessels of both lungs, wide and dense at the hilum, thin at the pleura."""
    levels: list[list[tuple[complex, complex, complex]]] = [[] for _ in _VESSELS]
    for side in SIDES:
        hilum = complex(side * 0.24, 0.455 if side > 0 else 0.475)
        for heading in np.deg2rad(np.linspace(-82, 100, 10) + rng.normal(0, 6, 10)):
            start = hilum + complex(*rng.normal(0, 0.03, 2))
            _grow(levels, start, float(heading), side, 0, rng.uniform(0.16, 0.24), rng)
    t = np.linspace(0, 1, 7)
    bezier = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
    total = np.zeros(canvas.u.shape, np.float32)
    for (width, density), vessels in zip(_VESSELS, levels, strict=True):
        lines = np.array(vessels).reshape(-1, 3) @ bezier
        plate = canvas.strokes(list(np.stack([lines.real, lines.imag], axis=-1)), width) if len(lines) else total * 0
        total = total + density * canvas.blur(plate, width * 0.35)
    for side in SIDES:
        hilum_distance = canvas.radius(side * 0.22, 0.47 if side < 0 else 0.445)
        total += 0.16 * np.exp(-((hilum_distance / 0.05) ** 2)) * (1 + 0.3 * canvas.noise(rng, 0.05, 2))
    return total


_VESSELS = ((0.0105, 0.15), (0.0075, 0.115), (0.0052, 0.085), (0.0036, 0.06), (0.0026, 0.045))
"""Width (of the height) and attenuation of the vessels, by generation."""


def _grow(
    levels: list[list[tuple[complex, complex, complex]]],
    start: complex,
    heading: float,
    side: int,
    level: int,
    length: float,
    rng: np.random.Generator,
) -> None:
    """Add one vessel (three control points U + iV) and its branches; `heading` 0 is lateral, positive downward."""
    bend = heading + 0.35 * rng.standard_normal()
    middle = start + 0.5 * length * complex(side * math.cos(heading), math.sin(heading) * 0.55)
    end = middle + 0.5 * length * complex(side * math.cos(bend), math.sin(bend) * 0.55)
    levels[level].append((start, middle, end))
    if level + 1 == len(levels):
        return
    for turn in (-0.42, 0.42):
        if rng.random() < (1.0, 0.9, 0.75, 0.6)[level]:
            onward = bend + turn + 0.18 * rng.standard_normal()
            _grow(levels, end, onward, side, level + 1, length * (0.68 + 0.24 * rng.random()), rng)
