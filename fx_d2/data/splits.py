"""Which split an image goes to: as the release says, by lists of one's own, or drawn by patient."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fx_d2.data.folder_tables import read_names
from fx_d2.structures import SPLITS, FXError


def draw_splits(patients: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """A split for each image, all images of a patient in one; independent of the images' order.

    Args:
        patients: the patient of each image.
        shares: split -> share of the images; "train" gets what is left of them.
        seed: another seed, another draw.

    Returns:
        "train", "val" or "test" for each image. Patients are drawn into test, then val, until the split has its share.
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
