"""Training on a few images of a dataset: which ones."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fx_d2.structures import FXError


def draw_images(dicts: Sequence[Mapping[str, Any]], tasks: Sequence[str], count: int, seed: int) -> list[int]:
    """The places of `count` images in `dicts`, ascending; a pure function, whatever the order of `dicts`.

    Images annotated for every one of `tasks` are put in an order by a hash of (seed, dataset, patient): first an
    image of each patient, then a second one of those who have more, and so on. The first `count` are taken, so that a
    smaller draw is part of a larger one, and a patient is asked twice only when all have been asked once.

    Args:
        dicts: of one dataset, as `annotations.load_split` gives them.
        tasks: what an image must be annotated for.
        count: images wanted, at least 1.
        seed: another seed, another draw.

    Raises:
        FXError: there are fewer such images.
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
