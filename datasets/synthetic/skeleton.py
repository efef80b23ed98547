"""Ribs, clavicles, spine, shoulder blades and humeral heads: a bright layer with known rib paths."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .canvas import Canvas, Points, curve, smooth
from .patient import Patient

RIB_WIDTH = 0.021
"""Width of a rib as a fraction of the image height."""

CLAVICLE_WIDTH = 0.022
"""Width of the shaft of a clavicle, likewise."""


@dataclass
class Skeleton:
    """The bone layer.

    Attributes:
        layer: float32 (H, W), attenuation.
        ribs: (side, number from 1 at the top) -> (N, 2) thorax coordinates of the posterior part, from the spine
            outwards.
        clavicles: side -> (N, 2) thorax coordinates, from the sternum outwards.
    """

    layer: np.ndarray
    ribs: dict[tuple[int, int], np.ndarray]
    clavicles: dict[int, np.ndarray]


def rib_posterior(patient: Patient, number: int, side: int) -> np.ndarray:
    """Path of a posterior rib from the spine to the lateral chest wall."""
    return _posterior(patient, number) * (side, 1)


def rib_anterior(patient: Patient, number: int, side: int) -> np.ndarray:
    """Path of an anterior rib from the lateral chest wall down to the costal cartilage."""
    return _anterior(patient, number) * (side, 1)


@lru_cache(maxsize=64)
def _posterior(patient: Patient, number: int) -> np.ndarray:
    v = patient.rib_phase - 0.03 + patient.rib_pitch * (number - 1)
    reach = cage_width(v + 0.06 + 0.012 * number)
    drop = 0.055 + 0.016 * number
    points = [(0.1, v), (0.3 * reach, v - 0.022), (0.55 * reach, v - 0.002), (0.82 * reach, v + 0.45 * drop)]
    return curve([*points, (reach * 0.985, v + drop)], 40)


@lru_cache(maxsize=64)
def _anterior(patient: Patient, number: int) -> np.ndarray:
    start = _posterior(patient, number)[-1]
    end = (0.36 + 0.055 * number, start[1] + 0.12 + 0.016 * number)
    middle = (start[0] * 0.9, start[1] + 0.055 + 0.006 * number)
    points = [tuple(start), (start[0] * 1.0, start[1] + 0.02), middle, ((middle[0] + end[0]) / 2, end[1] - 0.025), end]
    return curve(points, 40)


def cage_width(v: float) -> float:
    """Half the width of the rib cage at height V (the lateral border of the lungs), in thorax units."""
    heights = [-0.05, 0.0, 0.055, 0.15, 0.28, 0.43, 0.58, 0.74, 0.88, 1.1]
    return float(np.interp(v, heights, [0.24, 0.40, 0.58, 0.75, 0.87, 0.935, 0.97, 0.99, 1.0, 1.0]))


def draw_bone(canvas: Canvas, lines: list[np.ndarray], width: float, body: float, rim: float) -> np.ndarray:
    """Draw tubes with a brighter cortex; `body` and `rim` are attenuations; float32 (H, W)."""
    outer = canvas.strokes(lines, width)
    inner = canvas.strokes(lines, width * 0.55)
    return canvas.blur(body * outer + rim * np.clip(outer - inner, 0, 1), 0.0018)


def draw_skeleton(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> Skeleton:
    """Draw all bones of one patient, with ribs 1 to 10 on each side."""
    ribs: dict[tuple[int, int], np.ndarray] = {}
    layer = np.zeros(canvas.u.shape, np.float32)
    bright = rng.uniform(0.85, 1.15)
    for parity in (0, 1):
        back = [(side, n) for side in (-1, 1) for n in range(1, 11) if n % 2 == parity]
        ribs.update({key: rib_posterior(patient, key[1], key[0]) for key in back})
        posterior = draw_bone(canvas, [ribs[key] for key in back], RIB_WIDTH, 0.085 * bright, 0.075 * bright)
        front = [rib_anterior(patient, n, side) for side in (-1, 1) for n in range(1, 8) if n % 2 == parity]
        anterior = draw_bone(canvas, front, RIB_WIDTH * 1.15, 0.03 * bright, 0.035 * bright)
        layer = layer + posterior + anterior
    layer = layer * (0.45 + 0.55 * smooth(np.abs(canvas.u), 0.1, 0.26)) * smooth(canvas.v, 1.12, 0.85)
    clavicles: dict[int, np.ndarray] = {}
    for side in (-1, 1):
        shoulder, clavicles[side] = _shoulder(canvas, side, rng)
        layer = layer + shoulder
    return Skeleton((layer + _spine(canvas, patient)).astype(np.float32), ribs, clavicles)


def _shoulder(canvas: Canvas, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Clavicle, humerus and shoulder blade of one side: the layer, and the path of the clavicle."""
    lift = rng.uniform(-0.02, 0.02)

    def mirrored(points: Points) -> np.ndarray:
        return np.asarray(points) * (side, 1)

    points = [
        (0.1, 0.16),
        (0.2, 0.125),
        (0.42, 0.1 + lift / 2),
        (0.7, 0.06 + lift),
        (0.95, 0.005 + lift),
        (1.13, 0.015 + lift),
    ]
    clavicle = curve(mirrored(points), 60)
    shaft_parts = draw_bone(canvas, [clavicle], CLAVICLE_WIDTH, 0.1, 0.09)
    total = np.maximum(shaft_parts, draw_bone(canvas, [clavicle[:9]], 0.03, 0.1, 0.06))
    ball = canvas.radius(side * 1.36, 0.09 + lift)
    head = smooth(ball, 0.062, 0.054)
    total = total + canvas.blur(0.14 * head + 0.06 * (head - smooth(ball, 0.055, 0.045)), 0.003)
    shaft = curve(mirrored([(1.40, 0.14 + lift), (1.55, 0.32), (1.68, 0.6)]))
    total = total + draw_bone(canvas, [shaft], 0.045, 0.08, 0.09)
    blade = mirrored(
        [(1.2, 0.06 + lift), (1.0, 0.06), (0.88, 0.1), (0.86, 0.25), (0.97, 0.44), (1.05, 0.4), (1.22, 0.2)]
    )
    plate = canvas.polygon(curve(blade, 50, closed=True))
    border = canvas.strokes(
        [curve(mirrored([(1.22, 0.16), (1.07, 0.38), (0.97, 0.44), (0.87, 0.27), (0.88, 0.12)]))], 0.008
    )
    spine = canvas.strokes([curve(mirrored([(0.87, 0.17), (1.0, 0.1), (1.2, 0.01 + lift)]))], 0.014)
    return total + canvas.blur(0.03 * plate + 0.05 * border + 0.05 * spine, 0.003), clavicle


def _spine(canvas: Canvas, patient: Patient) -> np.ndarray:
    """Vertebral bodies with end plates and pedicles, faint behind the mediastinum."""
    total = np.zeros(canvas.u.shape, np.float32)
    plates, eyes = [], []
    for n in range(-4, 22):
        v = patient.rib_phase - 0.03 + 0.082 * n
        half = 0.075 + 0.003 * max(n, 0)
        total += canvas.polygon([(-half, v), (half, v), (half, v + 0.066), (-half, v + 0.066)])
        plates += [[(-half, v), (half, v)], [(-half, v + 0.066), (half, v + 0.066)]]
        eyes += [[(side * half * 0.62, v + 0.025), (side * half * 0.62, v + 0.038)] for side in (-1, 1)]
    ends = canvas.strokes(plates, 0.004)
    return canvas.blur(0.06 * total + 0.07 * ends + 0.05 * canvas.strokes(eyes, 0.009), 0.003)
