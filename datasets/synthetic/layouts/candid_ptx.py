"""CANDID-PTX: a folder of DICOM files, and Pneumothorax_reports.csv with one row per annotation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fx_d2.data.codecs import encode_relative_rle

from ..film_record import Film
from .files import uid, write_csv, write_dicom

HEADER = ("SOPInstanceUID", "StudyInstanceUID", "filename", "EncodedPixels", "Report")


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts; every other file has 12 bits and a window, every third is MONOCHROME1. `filename` has the patient.

    Files are named by SOPInstanceUID, every other one without ".dcm": both occur in practice.
    """
    paths, rows = [], []
    for film in films:
        sop, study = (uid(what, film.digest()) for what in ("image", "study"))
        paths.append(f"dataset/{sop}{'.dcm' if film.number % 2 else ''}")
        write_dicom(
            root / paths[-1],
            film.image,
            sop_uid=sop,
            study_uid=study,
            series_uid=uid("series", film.digest()),
            sex=film.sex,
            age=film.age,
            bits=12 if film.number % 2 else 8,
            window=film.number % 2 == 1,
            inverted=film.number % 3 == 0,
        )
        codes = [encode_relative_rle(instance.mask) for instance in film.instances] or ["-1"]
        name = f"P{film.patient:05d}_{film.follow_up}.dcm"
        rows += [(sop, study, name, code, "Synthetic image, no patient.") for code in codes]
    write_csv(root / "Pneumothorax_reports.csv", HEADER, rows)
    return paths
