"""SIIM-ACR Pneumothorax Segmentation: DICOM files two folders deep, and train-rle.csv with a space in its header."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fx_d2.data.codecs import encode_relative_rle

from ..film_record import Film
from .files import uid, write_csv, write_dicom


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; one row per annotation; a healthy image has one row with the code "-1"."""
    paths, rows = [], []
    for film in films:
        image, study, series = (uid(what, film.digest()) for what in ("image", "study", "series"))
        folder = "dicom-images-test" if film.split == "test" else "dicom-images-train"
        paths.append(f"{folder}/{study}/{series}/{image}.dcm")
        write_dicom(
            root / paths[-1],
            film.image,
            sop_uid=image,
            study_uid=study,
            series_uid=series,
            patient_id=film.digest("patient"),
            sex=film.sex,
            age=film.age,
            jpeg=95,
        )
        codes = [encode_relative_rle(instance.mask) for instance in film.instances] or ["-1"]
        rows += [(image, f" {code}") for code in codes]
    write_csv(root / "train-rle.csv", ("ImageId", " EncodedPixels"), rows)
    return paths
