"""VinDr-CXR with CheXmask: the folders of VinDr-CXR, and the CheXmask table of run-length codes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fx_d2.data.codecs import encode_absolute_rle

from ..film_record import Film
from .files import write_csv
from .vindr_cxr import write_images

HEADER = (
    "image_id", "Dice RCA (Mean)", "Dice RCA (Max)", "Landmarks", "Left Lung", "Right Lung", "Heart", "Height", "Width",
)  # fmt: skip
STRUCTURES = ("left_lung", "right_lung", "heart")


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; VinDr-CXR in `vindr-cxr`, CheXmask in `chexmask`, its rows sorted by image id."""
    paths, rows = [], []
    for film, path in write_images(root / "vindr-cxr", films):
        paths.append(f"vindr-cxr/{path}")
        quality = float(film.rng("quality").uniform(0.8, 0.99))
        codes = [encode_absolute_rle(film.structures[name]) for name in STRUCTURES]
        rows.append((Path(path).stem, f"{quality:.4f}", f"{quality + 0.005:.4f}", "", *codes, *film.image.shape))
    write_csv(root / "chexmask" / "OriginalResolution" / "VinDr-CXR.csv", HEADER, sorted(rows))
    return paths
