"""RSNA Pneumonia Detection Challenge, stage 2: one folder of JPEG-compressed DICOM files and two tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..film_record import Film
from .files import uid, write_csv, write_dicom


def write(root: Path, films: Iterable[Film]) -> list[str]:
    """See layouts. patientId identifies the image; patients are known only through a mapping to ChestX-ray14."""
    paths, boxes, classes = [], [], []
    for film in films:
        name = film.digest()
        paths.append(f"stage_2_train_images/{name}.dcm")
        write_dicom(
            root / paths[-1],
            film.image,
            sop_uid=uid("image", name),
            study_uid=uid("study", name),
            series_uid=uid("series", name),
            patient_id=name,
            sex=film.sex,
            age=film.age,
            jpeg=95,
        )
        found = [(name, *map(float, instance.box), 1) for instance in film.instances]
        boxes += found or [(name, None, None, None, None, 0)]
        (label,) = (title for title, value in film.labels.items() if value == 1)
        # The release has one row per box in each table.
        classes += [(name, label)] * max(1, len(found))
    write_csv(root / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), boxes)
    write_csv(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    return paths
