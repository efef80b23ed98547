"""Findings of the pleural space: fluid, air, thickening. Contract of the drawers: see lesions.py."""

from __future__ import annotations

import cv2
import numpy as np

from .anatomy import Scene
from .canvas import disc, smooth
from .lesions import largest

WATER = 1.14
"""Attenuation where fluid or soft tissue replaces lung: that of the adjacent abdomen."""


def effusion(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Fluid that fills the costophrenic angle up to a meniscus, concave and highest at the lateral wall."""
    canvas = scene.canvas
    height = rng.uniform(0.24, 0.46) * (0.45 + 0.55 * strength)
    lateral = np.clip((canvas.u * side - 0.1) / 0.85, 0, 1.15)
    level = 0.985 - height * (0.42 + 0.3 * lateral**2 + 0.28 * lateral**9)
    fluid = smooth(canvas.v - level, -0.008, 0.012) * scene.lungs[side]
    fluid = canvas.blur(fluid.astype(np.float32), 0.003)
    density = np.maximum(scene.soft, WATER - 0.12 * (1 - strength))
    scene.soft += fluid * (density - scene.soft)
    scene.markings *= 1 - 0.9 * fluid
    scene.skeleton.layer *= 1 - 0.5 * fluid
    return [largest(fluid > 0.5)]


def pneumothorax(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Air between chest wall and lung: a thin bright pleural line, dark and without vessels beyond it."""
    canvas = scene.canvas
    anchor = np.array([side * 0.1, 0.99])
    shrink = np.array([rng.uniform(0.66, 0.87), rng.uniform(0.74, 0.92)])
    outline = (scene.outlines[side] - anchor) * shrink + anchor
    inner = canvas.polygon(outline)
    space = scene.fields[side] & (inner < 0.5) & (canvas.u * side > 0.14)
    opened = cv2.morphologyEx(space.astype(np.uint8), cv2.MORPH_OPEN, disc(max(1, canvas.height // 170)))
    space = largest(opened > 0)
    air = canvas.blur(space.astype(np.float32), 0.0015)
    near = cv2.dilate(space.astype(np.uint8), disc(max(2, canvas.height // 100)))
    line = canvas.strokes([np.vstack([outline, outline[:1]])], 0.0052) * near * scene.fields[side]
    collapsed = canvas.blur(inner * scene.fields[side], 0.003)
    scene.soft += (0.07 * collapsed - 0.13 * air * strength) * (1 - 0.2 * smooth(canvas.v, 0.8, 1))
    scene.markings *= 1 - 0.97 * air
    scene.soft += 0.21 * strength * line
    return [space]


def pleural_thickening(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """A dense, irregular rind along the lateral wall, or an apical cap."""
    canvas = scene.canvas
    depth = canvas.depth(scene.lungs[side])
    thick = rng.uniform(0.026, 0.04) * (1 + 0.18 * canvas.noise(rng, 0.1, 2))
    lateral = canvas.u * side
    if rng.random() < 0.35:
        where = smooth(canvas.v, 0.2, 0.13) * smooth(lateral, 0.12, 0.2)
        thick = thick * 1.2
    else:
        top, length = rng.uniform(0.16, 0.42), rng.uniform(0.34, 0.46)
        where = smooth(canvas.v, top, top + 0.06) * smooth(canvas.v, top + length, top + length - 0.08)
        where = where * smooth(lateral, 0.5, 0.55)
    rind = smooth(depth / thick, 1.08, 0.9) * where * scene.lungs[side]
    rind = canvas.blur(rind.astype(np.float32), 0.0018) * scene.lungs[side]
    density = np.maximum(scene.soft, 0.98)
    scene.soft += strength * rind * (density - scene.soft)
    scene.markings *= 1 - rind
    seen = np.where(scene.fields[side], rind, 0)
    seen = seen if seen.any() else rind  # Heart and diaphragm may hide a thin rind.
    # In a small image the rind is thinner than a pixel and does not reach 0.4.
    return [largest(seen > min(0.4, 0.6 * seen.max()))]
