"""Findings of heart, mediastinum and bones, and devices. Contract of the drawers: see lesions.py."""

from __future__ import annotations

import cv2
import numpy as np

from .anatomy import Scene
from .canvas import curve, disc, smooth
from .lesions import largest
from .skeleton import RIB_WIDTH, draw_bone


def cardiomegaly(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Silhouette of the heart above the domes; `Kind.prepare` has enlarged it."""
    inside = scene.heart & (scene.canvas.v < 0.99)
    return [largest(inside)]


def wide_mediastinum(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Silhouette of the upper mediastinum above the heart; `Kind.prepare` has widened it."""
    return [largest(scene.mediastinum & (scene.canvas.v > 0.06) & (scene.canvas.v < 0.55))]


def hernia(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Hiatal hernia: a round wall behind the heart with a gas-fluid level."""
    canvas = scene.canvas
    place = (rng.uniform(-0.02, 0.2), rng.uniform(0.76, 0.82))
    radius = rng.uniform(0.075, 0.1)
    distance = canvas.radius(*place) * (1 + 0.06 * canvas.noise(rng, 0.12, 2))
    ball = smooth(distance, radius, 0.9 * radius)
    wall = np.exp(-(((distance - radius) / 0.008) ** 2))
    gas = smooth(distance, 0.93 * radius, 0.8 * radius) * smooth(canvas.v - place[1], 0.012, 0.002)
    scene.soft += strength * canvas.blur(0.1 * ball + 0.16 * wall - 0.52 * gas, 0.002)
    return [(distance < radius) & (canvas.v < 1.0)]


def fracture(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """One or two adjacent broken ribs: a dark gap, the outer fragment displaced, bright bone ends."""
    canvas, masks = scene.canvas, []
    first = int(rng.integers(4, 8))
    for number in range(first, first + int(rng.integers(1, 3))):
        path = scene.skeleton.ribs[side, number]
        cut = int(rng.integers(19, 28))
        u, v = path[cut]
        window = canvas.radius(u, v)
        scene.skeleton.layer *= 1 - smooth(window, 0.052, 0.042)
        step = np.array([0.0, 0.03 * (1 if rng.random() < 0.5 else -1)])
        inner, outer = path[max(0, cut - 12) : cut - 1], path[cut + 2 : cut + 14] + step
        pieces = draw_bone(canvas, [inner, outer], RIB_WIDTH, 0.15, 0.1)
        ends = canvas.strokes([inner[-2:], outer[:2]], RIB_WIDTH * 0.9)
        scene.skeleton.layer += (pieces + 0.16 * strength * canvas.blur(ends, 0.002)) * smooth(window, 0.056, 0.046)
        masks.append(window < 0.042)
    return masks


def devices(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """A central line or pacemaker, often with a tracheal or feeding tube; one mask per device."""
    canvas = scene.canvas
    plates = [_pacemaker(scene, side) if rng.random() < 0.4 else _central_line(scene, rng, side)]
    if rng.random() < 0.7:
        plates.append(_tracheal_tube(scene) if rng.random() < 0.5 else _feeding_tube(scene, rng))
    masks = []
    for plate in plates:
        scene.overlay = np.maximum(scene.overlay, 0.5 * canvas.blur(plate, 0.001))
        masks.append(cv2.dilate((plate > 0.35).astype(np.uint8), disc(max(1, canvas.height // 200))) > 0)
    return masks


def _central_line(scene: Scene, rng: np.random.Generator, side: int) -> np.ndarray:
    """A thin line from below the clavicle to the lower superior vena cava."""
    start = [(side * 0.75, -0.02), (side * 0.62, 0.06), (side * 0.32, 0.115)]
    end = [(-0.1, 0.24), (-0.125, 0.36), (-0.13, rng.uniform(0.42, 0.5))]
    return scene.canvas.strokes([curve([*start, *end])], 0.0065)


def _pacemaker(scene: Scene, side: int) -> np.ndarray:
    """A metal box below the clavicle with a lead to the right ventricle."""
    canvas = scene.canvas
    box = np.asarray([(0.62, 0.16), (0.7, 0.13), (0.84, 0.14), (0.88, 0.2), (0.84, 0.27), (0.7, 0.275), (0.62, 0.24)])
    case = canvas.polygon(curve(box * (side, 1), 40, closed=True))
    lead = [
        (side * 0.64, 0.17),
        (side * 0.45, 0.12),
        (side * 0.12, 0.17),
        (-0.1, 0.32),
        (-0.14, 0.6),
        (0.02, 0.82),
        (0.3, 0.88),
    ]
    return np.maximum(case, canvas.strokes([curve(lead)], 0.0075))


def _tracheal_tube(scene: Scene) -> np.ndarray:
    """Two walls of a tube in the trachea, ending above the carina."""
    left = curve([(-0.033, -0.4), (-0.033, 0.0), (-0.038, 0.24)])
    right = left + (0.055, 0.0)
    return scene.canvas.strokes([left, right, np.array([left[-1], right[-1]])], 0.0055)


def _feeding_tube(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A tube down the midline into the stomach."""
    tip = (rng.uniform(0.35, 0.5), 1.1)
    return scene.canvas.strokes(
        [curve([(0.0, -0.4), (0.01, 0.1), (0.03, 0.5), (0.04, 0.85), (0.14, 1.02), tip])], 0.0085
    )
