"""Which split an image goes to: as the release says, by lists of one's own, or drawn by patient."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fx_d2.data.folder_tables import read_names
from fx_d2.structures import SPLITS, FXError

DEFAULT_SHARES = {"val": 0.1, "test": 0.2}
"""Shares of the images where no splits are given."""


def fill_splits(
    patients: Sequence[str], given: Sequence[str], shares: Mapping[str, float | None], seed: int
) -> list[str]:
    """A split for each image: the one that is given; drawn by patient where none is, or where a share is asked for.

    Args:
        patients: the patient of each image.
        given: the split of each image, "" = none.
        shares: of "val" and "test". Where no image has a split they are of all images, by default DEFAULT_SHARES; else
            what moves from train into a split that is not there, by default nothing.
        seed: see `draw_splits`.

    Raises:
        FXError: a share of a split that is there, or see `draw_splits`.
    """
    used = {split: (0 if any(given) else DEFAULT_SHARES[split]) if x is None else x for split, x in shares.items()}
    for split, share in used.items():
        if share and split in given:
            raise FXError(f"--{split}-share: there is a {split} split already; leave the option out")
    free = [split in ("", "train") for split in given]
    drawn = iter(draw_splits([patient for patient, x in zip(patients, free, strict=True) if x], used, seed))
    return [next(drawn) if x else split for split, x in zip(given, free, strict=True)]


def draw_splits(patients: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """A split for each image, all images of a patient in one; independent of the images' order.

    Args:
        patients: the patient of each image.
        shares: split -> share of the images; "train" gets what is left of them.
        seed: another seed, another draw.

    Returns:
        "train", "val" or "test" for each image. Patients are drawn into test, then val, until the split has its share.

    Raises:
        FXError: shares that leave nothing to train, or patients with so many images each that nothing is left.
    """
    wanted = {split: round(shares.get(split, 0) * len(patients)) for split in ("test", "val")}
    if min(shares.values(), default=0) < 0 or sum(shares.values()) >= 1:
        raise FXError(f"shares of val and test must be 0 or more and leave something to train, not {dict(shares)}")
    sizes = Counter(patients)
    order = sorted(sizes, key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).digest())
    owner: dict[str, str] = {}
    filled: Counter[str] = Counter()
    for patient in order:
        split = next((split for split, count in wanted.items() if filled[split] < count), "train")
        owner[patient] = split
        filled[split] += sizes[patient]
    if patients and not filled["train"]:
        raise FXError(f"val and test take all {len(sizes)} patients: nothing is left to train; give smaller shares")
    return [owner[patient] for patient in patients]


def read_split_lists(folder: Path) -> dict[str, str]:
    """Split by image name from train.txt, val.txt and test.txt of a folder, one image a line, in `image_key`'s form.

    What follows a name after a blank or comma, such as a label, is not read.

    Raises:
        FXError: no list at all, an empty one, or an image in two.
    """
    files = {split: folder / f"{split}.txt" for split in SPLITS if (folder / f"{split}.txt").is_file()}
    if not files:
        raise FXError(f"{folder}: has none of {[f'{split}.txt' for split in SPLITS]}")
    owner: dict[str, str] = {}
    for split, file in files.items():
        for line in read_names(file):
            name = image_key(line.replace(",", " ").split()[0])
            if owner.setdefault(name, split) != split:
                raise FXError(f"{file}: image {name!r} is in {owner[name]}.txt as well")
    return owner


def find_listed(names: Iterable[str], images: Sequence[str], where: str) -> list[int]:
    """The place in `images` of each name.

    Args:
        names: in `image_key`'s form.
        images: paths of the images below their common folder.
        where: what to call the list in errors.

    Raises:
        FXError: a name that is no image's path, nor the last part of just one's.
    """
    paths = {image_key(path): place for place, path in enumerate(images)}
    ends: dict[str, list[int]] = defaultdict(list)
    for path, place in paths.items():
        ends[path.rpartition("/")[2]].append(place)
    found: list[int] = []
    for name in names:
        places = [paths[name]] if name in paths else ends.get(name, [])
        if len(places) != 1:
            problem = f"{len(places)} images end so: give folders" if places else "is not in the release"
            raise FXError(f"{where}: image {name!r}: {problem}")
        found += places
    return found


def image_key(name: str) -> str:
    """A path without the ending of an image file, which lists vary."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in _ENDINGS else name


_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".mha", ".img")
