"""What the three preparations of VinDr-CXR share: where its images lie."""

from __future__ import annotations

from pathlib import Path

from fx_d2.data.release_files import index_files

ENDINGS = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")
"""The release has .dicom files; converted copies in the same folders do as well."""


def find_images(source: Path, split: str) -> dict[str, Path]:
    """The images of a split by their id. The release names no patients: an image's id is taken for one."""
    return index_files(source / split, ENDINGS)
