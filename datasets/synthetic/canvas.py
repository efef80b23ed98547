"""Drawing in thorax coordinates: maps points of the body to pixels of the image.

Thorax coordinates (U, V): U = 0 on the midline, +1 at the widest point of the rib cage on the right side of the image,
which is the patient's left; V = 0 at the lung apex, 1 at the costophrenic angle. Lengths such as stroke widths and
blurs are fractions of the image height, so that an image looks the same at every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

Points = np.ndarray | Sequence[tuple[float, float]]
_SHIFT = 4


class Canvas:
    """An image of (height, width) pixels and the affine map from thorax coordinates to its pixels.

    Attributes:
        u, v: float32 (height, width), thorax coordinates of every pixel centre.
    """

    def __init__(
        self, height: int, width: int, half_width: float, apex: float, span: float, offset: float, angle: float
    ) -> None:
        """Set up the map.

        Args:
            height: pixels.
            width: pixels.
            half_width: half width of the rib cage, as a fraction of the height.
            apex: vertical position of the lung apex, as a fraction of the height.
            span: distance from apex to costophrenic angle, as a fraction of the height.
            offset: shift of the midline to the right, as a fraction of the height.
            angle: rotation of the body in degrees.
        """
        self.height, self.width = height, width
        turn = np.deg2rad(angle)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        self._matrix = rotation @ np.diag([half_width, span]) * height
        middle = np.array([0.0, apex + span / 2 - 0.5]) * height
        self._origin = np.array([width / 2 + offset * height, height / 2]) + middle - self._matrix @ [0.0, 0.5]
        y, x = np.mgrid[0:height, 0:width]
        inverse = np.linalg.inv(self._matrix)
        dx, dy = x + 0.5 - self._origin[0], y + 0.5 - self._origin[1]
        self.u = (inverse[0, 0] * dx + inverse[0, 1] * dy).astype(np.float32)
        self.v = (inverse[1, 0] * dx + inverse[1, 1] * dy).astype(np.float32)

    def pixels(self, points: Points) -> np.ndarray:
        """Thorax coordinates (N, 2) -> pixel coordinates x, y (N, 2) float64."""
        return np.asarray(points, float) @ self._matrix.T + self._origin

    def radius(self, u: float, v: float) -> np.ndarray:
        """Distance of every pixel to a point in thorax coordinates; float32 fractions of the height."""
        x, y = self.pixels([(u, v)])[0]
        rows = np.arange(self.height, dtype=np.float32)[:, None] + 0.5 - np.float32(y)
        columns = np.arange(self.width, dtype=np.float32)[None] + 0.5 - np.float32(x)
        return np.sqrt(rows**2 + columns**2) / self.height

    def polygon(self, points: Points) -> np.ndarray:
        """A filled polygon with antialiased border; float32 (height, width) in 0..1."""
        plate = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(plate, [self._fixed(points)], 255, cv2.LINE_AA, _SHIFT)
        return plate.astype(np.float32) / 255

    def strokes(self, lines: Sequence[Points], width: float) -> np.ndarray:
        """Open polylines of one width (fraction of the height); float32 (height, width) in 0..1.

        A line narrower than a pixel is drawn one pixel wide and proportionally fainter.
        """
        plate = np.zeros((self.height, self.width), np.uint8)
        pixels = width * self.height
        value = int(round(255 * min(1.0, pixels)))
        fixed = np.split(self._fixed(np.concatenate(lines)), np.cumsum([len(line) for line in lines])[:-1])
        cv2.polylines(plate, fixed, False, value, max(1, int(round(pixels))), cv2.LINE_AA, _SHIFT)
        return plate.astype(np.float32) / 255

    def blur(self, plate: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur; sigma is a fraction of the height. Wide blurs run on a downsized copy."""
        pixels = sigma * self.height
        if pixels < 0.3:
            return plate
        if pixels <= 6:
            return cv2.GaussianBlur(plate, (0, 0), pixels)
        small = cv2.resize(plate, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        return self._enlarge(cv2.GaussianBlur(small, (0, 0), pixels / 4))

    def noise(self, rng: np.random.Generator, grain: float, octaves: int = 3) -> np.ndarray:
        """Smooth random texture of zero mean and unit variance; `grain` is its coarsest scale (of the height)."""
        total = np.zeros((self.height, self.width), np.float32)
        for octave in range(octaves):
            step = grain / 2**octave
            rows = max(3, int(np.ceil(1 / step)))
            grid = rng.standard_normal((rows, max(3, round(rows * self.width / self.height)))).astype(np.float32)
            total += self._enlarge(grid) / 2**octave
        return (total - total.mean()) / (total.std() + 1e-6)

    def depth(self, mask: np.ndarray) -> np.ndarray:
        """Distance of every pixel of a bool mask to the background; float32 fractions of the height."""
        padded = np.pad(mask.astype(np.uint8), 1, mode="edge")
        return cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1] / self.height

    def _enlarge(self, small: np.ndarray) -> np.ndarray:
        return cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_CUBIC)

    def _fixed(self, points: Points) -> np.ndarray:
        return np.round((self.pixels(points) - 0.5) * 2**_SHIFT).astype(np.int32)


def curve(points: Points, count: int = 60, closed: bool = False) -> np.ndarray:
    """A Catmull-Rom curve (count, 2) through the points; `closed` joins the last point to the first."""
    knots = np.asarray(points, float)
    return _weights(len(knots), count, closed) @ knots


@lru_cache(maxsize=256)
def _weights(knots: int, count: int, closed: bool) -> np.ndarray:
    """Weights (count, knots) of the knots at every point of a curve."""
    pieces = knots if closed else knots - 1
    place = np.linspace(0, pieces, count)
    piece = np.minimum(place.astype(int), pieces - 1)
    t = place - piece
    spline = [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    weights = np.zeros((count, knots))
    for shift, share in zip((-1, 0, 1, 2), spline, strict=True):
        at = piece + shift
        if closed:
            np.add.at(weights, (np.arange(count), at % knots), share / 2)
            continue
        inside = np.clip(at, 0, knots - 1)
        np.add.at(weights, (np.arange(count), inside), share / 2)
        over = np.flatnonzero(at != inside)
        beyond = np.where(at[over] < 0, 1, knots - 2)
        np.add.at(weights, (over, inside[over]), share[over] / 2)
        np.add.at(weights, (over, beyond), -share[over] / 2)
    return weights


def smooth(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smoothstep from 0 at `low` to 1 at `high` (low > high reverses it)."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def disc(pixels: int) -> np.ndarray:
    """Circular structuring element of the given radius in pixels, for cv2 morphology."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
