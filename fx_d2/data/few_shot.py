"""Sample the images for few-shot training."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fx_d2.structures import FXError


def draw_images(dicts: Sequence[Mapping[str, Any]], tasks: Sequence[str], count: int, seed: int) -> list[int]:
    """Sample `count` images: their indices in `dicts`, ascending. The sample does not depend on the order of `dicts`.

    Images annotated for all of `tasks` are ordered by a hash of (seed, dataset, patient): first one image of each
    patient, then a second image of those who have more, and so on. The first `count` are taken, so a smaller sample is
    a subset of a larger one, and no patient contributes a second image before all have contributed one.

    Args:
        dicts: dicts of one dataset, from `annotations.load_split`.
        tasks: tasks that an image must be annotated for.
        count: number of images, at least 1.
        seed: seed of the sample.

    Raises:
        FXError: fewer such images exist.
    """
    patients: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(dicts):
        if all(record["annotated"][task] for task in tasks):
            patients[str(record["patient_id"])].append(place)
    total = sum(map(len, patients.values()))
    name = dicts[0]["dataset"] if dicts else ""
    if not 0 < count <= total:
        raise FXError(
            f"DATASETS.FEW_SHOT.IMAGES is {count}: {name!r} has {total} training images annotated for "
            f"{' and '.join(tasks)}"
        )

    def rank(*words: Any) -> bytes:
        return hashlib.sha256("/".join(map(str, (seed, name, *words))).encode()).digest()

    order = []
    for patient, places in patients.items():
        places = sorted(places, key=lambda place: rank(patient, dicts[place]["image_id"]))
        order += [(turn, rank(patient), place) for turn, place in enumerate(places)]
    return sorted(place for _, _, place in sorted(order)[:count])
