"""Body measures and positioning of a patient: plain numbers, sampled once per patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Patient:
    """Measures of one patient; lengths are fractions of the image height unless stated otherwise.

    Attributes:
        sex: "F" or "M" (females have breast shadows).
        age: years; the aorta grows with it.
        half_width: half the rib cage at its widest.
        apex: distance of the lung apices from the top of the image.
        span: from lung apex to costophrenic angle.
        offset: shift of the midline to the right of the image centre.
        angle: rotation in degrees, clockwise in the image.
        fat: 0 thin .. 1 obese: thickness of the chest wall and brightness of the image.
        ctr: cardiothoracic ratio (width of heart / rib cage): below 0.5 when healthy, above 0.55 when enlarged.
        mediastinum: width of the upper mediastinum, 1 when healthy.
        doming: height of the diaphragm domes, 1 when healthy, near 0 when flat.
        rib_pitch: distance between adjacent posterior ribs in V.
        rib_phase: V of the first rib at the spine.
        lucency: amount of air in the lungs, 1 when healthy; more makes them darker.
        stomach: diameter of the gas bubble below the left dome; 0 = none.
        arms: gap between trunk and arms in thorax units.
    """

    sex: str
    age: int
    half_width: float
    apex: float
    span: float
    offset: float
    angle: float
    fat: float
    ctr: float
    mediastinum: float
    doming: float
    rib_pitch: float
    rib_phase: float
    lucency: float
    stomach: float
    arms: float


def sample_patient(rng: np.random.Generator) -> Patient:
    """Sample a healthy adult."""
    age = int(rng.integers(18, 90))
    return Patient(
        sex="F" if rng.random() < 0.5 else "M",
        age=age,
        half_width=rng.uniform(0.335, 0.39),
        apex=rng.uniform(0.075, 0.135),
        span=rng.uniform(0.60, 0.69),
        offset=rng.uniform(-0.018, 0.018),
        angle=float(np.clip(rng.normal(0, 2.0), -5, 5)),
        fat=rng.beta(1.6, 2.2),
        ctr=rng.uniform(0.40, 0.475),
        mediastinum=rng.uniform(0.92, 1.08) + 0.001 * (age - 50),
        doming=rng.uniform(0.8, 1.2),
        rib_pitch=rng.uniform(0.094, 0.108),
        rib_phase=rng.uniform(0.0, 0.045),
        lucency=rng.uniform(0.93, 1.07),
        stomach=rng.uniform(0.05, 0.12) if rng.random() < 0.55 else 0.0,
        arms=rng.uniform(0.0, 0.16),
    )
