"""Findings in lung tissue. Every drawer modifies the scene and returns one bool mask (H, W) per instance.

Arguments of every drawer: the scene, a random generator, the side (-1 the patient's right, +1 the left; ignored by
findings of both lungs) and the strength, 1 for a definite finding and less for an uncertain one.
"""

from __future__ import annotations

import cv2
import numpy as np

from .anatomy import SIDES, Scene
from .canvas import disc, smooth

ZONES = {"upper": (0.08, 0.36), "middle": (0.3, 0.62), "lower": (0.58, 0.84), "any": (0.12, 0.82)}
"""Ranges of V of the lung zones."""


def pick(scene: Scene, rng: np.random.Generator, side: int, zone: str, margin: float) -> tuple[float, float]:
    """Sample a point (U, V) in the visible lung, `margin` (of the height) from its border and from other findings."""
    low, high = ZONES[zone]
    band = (scene.canvas.v > low) & (scene.canvas.v < high)
    for taken in (scene.occupied, np.zeros_like(scene.occupied)):
        depth = scene.canvas.depth(scene.fields[side] & ~taken) * band
        rows, columns = np.nonzero(depth > min(margin, 0.8 * float(depth.max())))
        if len(rows) > 8:
            break
    i = int(rng.integers(len(rows)))
    return float(scene.canvas.u[rows[i], columns[i]]), float(scene.canvas.v[rows[i], columns[i]])


def cloud(
    scene: Scene, rng: np.random.Generator, side: int, place: tuple[float, float], radius: float, ragged: float = 0.3
) -> np.ndarray:
    """An irregular soft region around a point: float32 (H, W) in 0..1, zero outside the visible lung of that side."""
    canvas = scene.canvas
    distance = canvas.radius(*place) * (1 + 0.8 * ragged * canvas.noise(rng, 0.14, 3))
    region = (smooth(distance, radius, 0.45 * radius) * scene.fields[side]).astype(np.float32)
    return region * largest(region > 0.02)


def nodule(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """One or, less often, two round nodules with a sharp border."""
    masks: list[np.ndarray] = []
    for _ in range(2 if rng.random() < 0.25 else 1):
        masks.append(_ball(scene, rng, side, rng.uniform(0.026, 0.038), 0.36 * strength, 0.06))
        scene.occupied |= masks[-1]
    return masks


def mass(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """One lobulated mass, two to three times as wide as a nodule."""
    return [_ball(scene, rng, side, rng.uniform(0.065, 0.09), 0.5 * strength, 0.14)]


def _ball(scene: Scene, rng: np.random.Generator, side: int, radius: float, density: float, lobes: float) -> np.ndarray:
    canvas = scene.canvas
    place = pick(scene, rng, side, "any", radius * 1.15)
    distance = canvas.radius(*place) * (1 + lobes * canvas.noise(rng, 0.1, 2))
    profile = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, 1))
    scene.soft += density * canvas.blur((0.35 + 0.65 * profile) * (distance < radius), 0.0025)
    return (distance < radius) & scene.lungs[side]


def diffuse_nodules(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Dozens of small nodules in both lungs; one mask per lung, the region that they fill."""
    canvas, masks = scene.canvas, []
    for lung in SIDES:
        field = scene.fields[lung] & (canvas.v > 0.12)
        rows, columns = np.nonzero(canvas.depth(field) > 0.012)
        chosen = rng.choice(len(rows), 60, replace=False)
        dots = np.zeros(field.shape, np.float32)
        for i in chosen:
            u, v = canvas.u[rows[i], columns[i]], canvas.v[rows[i], columns[i]]
            radius = rng.uniform(0.009, 0.015)
            dots = np.maximum(dots, np.sqrt(np.clip(1 - (canvas.radius(u, v) / radius) ** 2, 0, 1)))
        scene.soft += 0.3 * strength * canvas.blur(dots, 0.0015) * scene.lungs[lung]
        reach = max(2, round(0.05 * canvas.height))
        region = cv2.morphologyEx((dots > 0.05).astype(np.uint8), cv2.MORPH_CLOSE, disc(reach))
        masks.append((region > 0) & scene.fields[lung])
    return masks


def calcification(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """A cluster of small, very bright grains."""
    canvas = scene.canvas
    place = pick(scene, rng, side, "any", 0.045)
    grains = np.zeros(scene.soft.shape, np.float32)
    for _ in range(int(rng.integers(6, 11))):
        angle, away = rng.uniform(0, 2 * np.pi), 0.034 * np.sqrt(rng.random())
        u = place[0] + away * np.cos(angle) / scene.patient.half_width
        v = place[1] + away * np.sin(angle) / scene.patient.span
        grains = np.maximum(grains, smooth(canvas.radius(u, v), rng.uniform(0.008, 0.013), 0.004))
    scene.soft += 0.7 * strength * grains
    region = cv2.morphologyEx((grains > 0.1).astype(np.uint8), cv2.MORPH_CLOSE, disc(max(2, canvas.height // 40)))
    return [(region > 0) & scene.lungs[side]]


def consolidation(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """A dense, fairly homogeneous region in the upper or middle zone with air bronchograms."""
    place = pick(scene, rng, side, "upper" if rng.random() < 0.4 else "middle", 0.06)
    region = cloud(scene, rng, side, place, rng.uniform(0.13, 0.18))
    fingers = []
    for turn in rng.uniform(-1.2, 1.2, 5):
        steps = np.linspace(-0.12, 0.3, 6)[:, None] * [[side * np.cos(turn), 0.6 * np.sin(turn)]]
        fingers.append(np.asarray(place) + steps + rng.normal(0, 0.008, (6, 2)))
    bronchi = scene.canvas.blur(scene.canvas.strokes(fingers, 0.008), 0.002)
    return _fill(scene, region, 0.5 * strength * (1 + 0.06 * scene.canvas.noise(rng, 0.05)) - 0.16 * bronchi, 0.4)


def infiltration(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """A large region of faint, fluffy patches."""
    place = pick(scene, rng, side, "any", 0.06)
    region = cloud(scene, rng, side, place, rng.uniform(0.17, 0.23))
    fluff = np.clip(0.55 + 0.6 * scene.canvas.noise(rng, 0.045, 2), 0, 1.6)
    return _fill(scene, region, 0.28 * strength * fluff, 0.35)


def opacity(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """A homogeneous haze that leaves vessels visible (ground glass)."""
    place = pick(scene, rng, side, "any", 0.06)
    region = cloud(scene, rng, side, place, rng.uniform(0.15, 0.21), 0.2)
    return _fill(scene, region, 0.31 * strength * np.ones_like(region), 0.35)


def pneumonia(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """A patchy consolidation in the lower zone."""
    place = pick(scene, rng, side, "lower", 0.05)
    region = cloud(scene, rng, side, place, rng.uniform(0.14, 0.2), 0.4)
    texture = np.clip(0.9 + 0.3 * scene.canvas.noise(rng, 0.06), 0.2, 1.6)
    return _fill(scene, region, 0.42 * strength * texture, 0.35)


def _fill(scene: Scene, region: np.ndarray, density: np.ndarray, threshold: float) -> list[np.ndarray]:
    """Add a density inside a soft region; the mask is the largest component of the region above the threshold."""
    scene.soft += scene.canvas.blur(region, 0.004) * density
    return [largest(region > threshold)]


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a bool mask, as bool."""
    count, names, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 1:
        return mask
    return names == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def atelectasis(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Plate atelectasis: one or two dense, nearly horizontal bands in the lower half of a lung."""
    canvas, masks = scene.canvas, []
    u, v = pick(scene, rng, side, "lower", 0.06)
    for number in range(int(rng.integers(1, 3))):
        half, tilt = rng.uniform(0.17, 0.26), rng.normal(0, 0.05)
        along = np.linspace(-1, 1, 9)
        line = np.stack([u + half * along, v - 0.1 * number + tilt * along * side + 0.012 * along**2], axis=1)
        band = canvas.blur(canvas.strokes([line], rng.uniform(0.02, 0.032)), 0.0035) * scene.fields[side]
        scene.soft += 0.42 * strength * band
        masks.append(largest(band > 0.4))
    return masks


def edema(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Haze around both hila, prominent vessels, Kerley lines at the lower lateral wall."""
    canvas, masks = scene.canvas, []
    scene.markings *= 1 + 0.2 * strength
    for lung in SIDES:
        lateral, height = (canvas.u * lung - 0.3) / 0.6, (canvas.v - 0.52) / 0.36
        distance = np.sqrt(lateral**2 + height**2) * (1 + 0.12 * canvas.noise(rng, 0.12))
        haze = smooth(distance, 1.1, 0.25) * scene.fields[lung]
        scene.soft += 0.46 * strength * canvas.blur(haze, 0.005) * (1 + 0.12 * canvas.noise(rng, 0.06))
        levels = rng.uniform(0.72, 0.92, 9)
        kerley = [[(lung * 0.86, v), (lung * 0.98, v - 0.004)] for v in levels]
        scene.soft += 0.14 * strength * canvas.strokes(kerley, 0.004) * scene.fields[lung]
        masks.append(largest(haze > 0.3))
    return masks


def emphysema(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Dark lungs with few vessels and round bullae, both sides; `Kind.prepare` has flattened the domes."""
    canvas = scene.canvas
    for lung in SIDES:
        field = canvas.blur(scene.fields[lung].astype(np.float32), 0.004)
        scene.markings *= 1 - 0.6 * strength * field
        u, v = pick(scene, rng, lung, "upper", 0.05)
        bulla = canvas.radius(u, v)
        rim = np.exp(-(((bulla - 0.05) / 0.004) ** 2))
        scene.soft += (0.07 * rim - 0.04 * smooth(bulla, 0.05, 0.04)) * field
    return [largest(scene.fields[lung]) for lung in SIDES]


def fibrosis(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """A coarse reticular pattern in the lower part of one or both lungs."""
    canvas, masks = scene.canvas, []
    for lung in (side,) if rng.random() < 0.4 else SIDES:
        edge = canvas.v + 0.1 * canvas.noise(rng, 0.15, 2)
        region = smooth(edge, 0.48, 0.62) * scene.fields[lung]
        net = np.exp(-((canvas.noise(rng, 0.024, 1) / 0.3) ** 2)) + np.exp(-((canvas.noise(rng, 0.036, 1) / 0.25) ** 2))
        scene.soft += strength * region * (0.05 + 0.27 * np.clip(net, 0, 1.2))
        masks.append(largest(region > 0.4))
    return masks


def tuberculosis(scene: Scene, rng: np.random.Generator, side: int, strength: float) -> list[np.ndarray]:
    """Nodular infiltrate in the upper zone with a thick-walled cavity and strands; in one or both lungs."""
    canvas, masks = scene.canvas, []
    for lung in (side,) if rng.random() < 0.65 else (side, -side):
        place = pick(scene, rng, lung, "upper", 0.05)
        region = cloud(scene, rng, lung, place, rng.uniform(0.13, 0.17), 0.35)
        texture = np.clip(0.6 + 0.55 * canvas.noise(rng, 0.032, 2), 0.05, 1.7)
        hole = canvas.radius(*place) * (1 + 0.1 * canvas.noise(rng, 0.08, 2))
        size = rng.uniform(0.026, 0.036)
        wall = np.exp(-(((hole - size) / 0.008) ** 2))
        density = 0.36 * texture * (1 - smooth(hole, size, 0.6 * size)) + 0.3 * wall
        hilum = np.array([lung * 0.22, 0.45])
        strands = [np.array([place, (np.asarray(place) + hilum) / 2 + rng.normal(0, 0.03, 2), hilum]) for _ in range(3)]
        lines = canvas.blur(canvas.strokes(strands, 0.006), 0.002) * scene.fields[lung]
        scene.soft += strength * (canvas.blur(region, 0.004) * density + 0.09 * lines)
        masks.append(largest(region > 0.35))
    return masks
