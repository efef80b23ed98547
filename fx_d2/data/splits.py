"""Assign images to splits: official splits, custom lists, or random splits by patient."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fx_d2.data.folder_tables import read_names
from fx_d2.structures import SPLITS, FXError

DEFAULT_SHARES = {"val": 0.1, "test": 0.2}
"""Fractions of the images if there are no splits."""


def fill_splits(
    patients: Sequence[str], given: Sequence[str], shares: Mapping[str, float | None], seed: int
) -> list[str]:
    """Complete the splits of a dataset: keep given ones, sample by patient where there are none or a share is given.

    Args:
        patients: the patient of each image.
        given: the split of each image, "" = none.
        shares: fractions for "val" and "test"; None = default. If no image has a split, of all images, default
            DEFAULT_SHARES; otherwise the fraction to move from train to a split that does not exist, default 0.
        seed: see `draw_splits`.

    Returns:
        the split of each image.

    Raises:
        FXError: a share of a split that exists, or see `draw_splits`.
    """
    used = {split: (0 if any(given) else DEFAULT_SHARES[split]) if x is None else x for split, x in shares.items()}
    for split, share in used.items():
        if share and split in given:
            raise FXError(f"--{split}-share: there is already a {split} split; remove the option")
    free = [split in ("", "train") for split in given]
    drawn = iter(draw_splits([patient for patient, x in zip(patients, free, strict=True) if x], used, seed))
    return [next(drawn) if x else split for split, x in zip(given, free, strict=True)]


def draw_splits(patients: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """Sample random splits by patient; the result does not depend on the order of the images.

    Args:
        patients: the patient of each image.
        shares: split -> fraction of the images; "train" gets the rest.
        seed: seed of the random split.

    Returns:
        "train", "val" or "test" for each image. Patients are assigned to test, then val, until each has its share.

    Raises:
        FXError: shares that leave nothing for train, or so few patients that none are left for train.
    """
    if not all(share >= 0 for share in shares.values()) or sum(shares.values()) >= 1:  # NaN is refused, too.
        raise FXError(f"shares of val and test must be 0 or more with a sum below 1, not {dict(shares)}")
    wanted = {split: round(shares.get(split, 0) * len(patients)) for split in ("test", "val")}
    sizes = Counter(patients)
    order = sorted(sizes, key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).digest())
    owner: dict[str, str] = {}
    filled: Counter[str] = Counter()
    for patient in order:
        split = next((split for split, count in wanted.items() if filled[split] < count), "train")
        owner[patient] = split
        filled[split] += sizes[patient]
    if patients and not filled["train"]:
        raise FXError(f"val and test take all {len(sizes)} patients: none are left for train; give smaller shares")
    return [owner[patient] for patient in patients]


def read_split_lists(folder: Path) -> dict[str, str]:
    """Read train.txt, val.txt and test.txt of a folder, one image per line: split by image name (see `image_key`).

    Anything after a space or comma, such as a label, is ignored.

    Raises:
        FXError: no lists, an empty list, or an image in two lists.
    """
    files = {split: folder / f"{split}.txt" for split in SPLITS if (folder / f"{split}.txt").is_file()}
    if not files:
        raise FXError(f"{folder}: has none of {[f'{split}.txt' for split in SPLITS]}")
    owner: dict[str, str] = {}
    for split, file in files.items():
        for line in read_names(file):
            words = line.replace(",", " ").split()
            if not words:
                raise FXError(f"{file}: line {line!r} names no image")
            name = image_key(words[0])
            if owner.setdefault(name, split) != split:
                raise FXError(f"{file}: image {name!r} is also in {owner[name]}.txt")
    return owner


def find_listed(names: Iterable[str], images: Sequence[str], where: str) -> list[int]:
    """The index in `images` of each name.

    Args:
        names: image names in the form of `image_key`: paths, or file names that are unique.
        images: paths of the images relative to their root.
        where: the list, for error messages.

    Raises:
        FXError: a name that matches no image or several.
    """
    paths = {image_key(path): place for place, path in enumerate(images)}
    ends: dict[str, list[int]] = defaultdict(list)
    for path, place in paths.items():
        ends[path.rpartition("/")[2]].append(place)
    found: list[int] = []
    for name in names:
        places = [paths[name]] if name in paths else ends.get(name, [])
        if len(places) != 1:
            problem = f"matches {len(places)} images: add the folder" if places else "is not in the release"
            raise FXError(f"{where}: image {name!r}: {problem}")
        found += places
    return found


def image_key(name: str) -> str:
    """A path without its image file extension, which lists may omit or change."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in _ENDINGS else name


_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".mha", ".img")
