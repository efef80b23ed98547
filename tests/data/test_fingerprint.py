"""Prints of films: what they must not see, and what they must tell apart."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from fx_d2.data.fingerprint import CANDIDATE, COARSE, FINE, SAME, correlation, film_print, similar_pairs

Change = Callable[[np.ndarray], np.ndarray]

CHANGES: dict[str, Change] = {
    "smaller": lambda film: cv2.resize(film, (200, 180), interpolation=cv2.INTER_AREA),
    "16 bits": lambda film: film.astype(np.float32) * 257,
    "gamma": lambda film: (255 * (film / 255) ** 0.6).astype(np.uint8),
    "window": lambda film: np.clip((film.astype(float) - 30) * 1.4, 0, 255).astype(np.uint8),
    "negative": lambda film: 255 - film,
    "equalised": lambda film: cv2.createCLAHE(2.0, (8, 8)).apply(film),
    "jpeg": lambda film: cv2.imdecode(cv2.imencode(".jpg", film, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], 0),
}


def film(seed: int) -> np.ndarray:
    """A picture with structures of all sizes, like a film, on the shape that all films share."""
    random = np.random.default_rng(seed)
    layers = [cv2.resize(random.normal(size=(side, side)), (400, 360)) * (1 / side) for side in (4, 8, 16, 32, 64)]
    y, x = np.mgrid[:360, :400] / 360
    common = np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) * 8)
    total = sum(layers) / np.std(sum(layers)) * 0.1 + common
    return np.clip(total * 140 + 40, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_film(change: str) -> None:
    original, copy = film(1), CHANGES[change](film(1))
    assert correlation(film_print(original), film_print(copy)) > CANDIDATE
    assert correlation(film_print(original, FINE), film_print(copy, FINE)) > SAME


def test_other_films_are_others() -> None:
    prints = np.stack([film_print(film(seed)) for seed in range(30)])
    assert prints.dtype == np.int8 and prints.shape == (30, COARSE[0] ** 2)
    assert list(similar_pairs(prints, prints)) == [(i, i) for i in range(30)]


def test_pairs_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices count over all blocks, and the threshold is that of the correlation of the two prints."""
    monkeypatch.setattr("fx_d2.data.fingerprint._BLOCK", 2)
    a = np.stack([film_print(film(seed)) for seed in range(5)])
    b = np.stack([film_print(CHANGES["gamma"](film(seed))) for seed in (9, 4, 2)])
    assert list(similar_pairs(a, b)) == [(2, 2), (4, 1)]
    low, high = sorted((correlation(a[2], b[2]), correlation(a[4], b[1])))
    assert len(list(similar_pairs(a, b, (low + high) / 2))) == 1 and not list(similar_pairs(a, b, high + 1e-3))


def test_blank_films_equal_nothing() -> None:
    blank = film_print(np.full((50, 50), 7, np.uint8))
    assert not blank.any() and correlation(blank, blank) == 0
    assert not list(similar_pairs(blank[None], blank[None]))
