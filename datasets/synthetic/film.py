"""From attenuation to a grey image: scatter, tone curve, detector noise, burnt-in markers, collimation."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .canvas import Canvas


@dataclass(frozen=True)
class FilmStyle:
    """Appearance of the X-rays of one hospital.

    Attributes:
        aspect: width / height of the image.
        gamma: above 1 darkens the lungs.
        contrast: steepness of the tone curve, about 1.
        noise: standard deviation of the quantum noise in grey levels.
        marker: probability of a burnt-in side marker.
        collimation: probability of a black border.
    """

    aspect: float = 1.0
    gamma: float = 1.0
    contrast: float = 1.0
    noise: float = 2.5
    marker: float = 0.6
    collimation: float = 0.15


def expose(attenuation: np.ndarray, canvas: Canvas, style: FilmStyle, rng: np.random.Generator) -> np.ndarray:
    """Render float32 attenuation (H, W) as uint8 (H, W), air black and bone white."""
    scatter = canvas.blur(attenuation, 0.06)
    signal = 0.93 * attenuation + 0.07 * scatter
    exposure = rng.uniform(-0.04, 0.04)
    steep = style.contrast * rng.uniform(0.95, 1.08)
    grey = 1 / (1 + np.exp(-3.9 * steep * (signal - 0.69 + exposure)))
    floor = 1 / (1 + np.exp(3.9 * steep * (0.69 - exposure)))
    grey = np.clip((grey - floor) / (0.95 - floor), 0, 1) ** (style.gamma * rng.uniform(0.95, 1.08))
    values = 6 + 240 * grey
    quantum = rng.standard_normal(values.shape).astype(np.float32)
    grain = cv2.GaussianBlur(quantum, (0, 0), 0.7) * 1.8
    values = values + style.noise * grain * (0.6 + 0.5 * (1 - grey))
    values = np.clip(values, 0, 255)
    values = _mark(values, style, rng)
    return np.round(_collimate(values, style, rng)).astype(np.uint8)


def _mark(values: np.ndarray, style: FilmStyle, rng: np.random.Generator) -> np.ndarray:
    """Burn in a side marker in an upper corner: "L" at the right of the image or "R" at its left."""
    if rng.random() >= style.marker:
        return values
    height, width = values.shape
    letter, x = ("L", rng.uniform(0.9, 0.94)) if rng.random() < 0.6 else ("R", rng.uniform(0.03, 0.06))
    origin = (int(x * width), int(rng.uniform(0.07, 0.14) * height))
    plate = np.zeros(values.shape, np.uint8)
    cv2.putText(plate, letter, origin, cv2.FONT_HERSHEY_SIMPLEX, height / 480, 255, max(1, height // 200), cv2.LINE_AA)
    return values + (250 - values) * (plate.astype(np.float32) / 255)


def _collimate(values: np.ndarray, style: FilmStyle, rng: np.random.Generator) -> np.ndarray:
    """Blacken a thin strip at one or two borders, as a collimator does."""
    if rng.random() >= style.collimation:
        return values
    height, width = values.shape
    left, right = (int(width * rng.uniform(0, 0.03)) for _ in range(2))
    top = int(height * rng.uniform(0, 0.02))
    shade = np.full_like(values, 3.0)
    shade[top:, left : width - right] = values[top:, left : width - right]
    return shade
