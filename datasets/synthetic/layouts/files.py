"""Writers for release files: DICOM, PNG, JPEG, csv, JSON; mask outlines. Same content, same bytes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

from fx_d2.structures import FXError


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an array as PNG or JPEG, by file extension; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise FXError(f"{path}: cannot be written; choose another --output")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; None becomes a blank cell; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def report_cell(label: int | None) -> str:
    """A label in the format of the CheXpert labeller; blank if not mentioned."""
    return "" if label is None else f"{label:.1f}"


def uid(*words: str) -> str:
    """A DICOM unique identifier derived from these words."""
    return str(generate_uid(entropy_srcs=["fx_d2", *words]))


def write_dicom(
    path: Path,
    image: np.ndarray,
    *,
    sop_uid: str,
    study_uid: str = "",
    series_uid: str = "",
    patient_id: str = "",
    sex: str = "",
    age: int | None = None,
    bits: int = 8,
    inverted: bool = False,
    window: bool = False,
    jpeg: int = 0,
) -> None:
    """Write a grey image as a DICOM digital radiograph; creates the folder.

    Args:
        path: the file.
        image: uint8 (H, W), bone bright.
        sop_uid: SOPInstanceUID.
        study_uid: StudyInstanceUID, "" = blank.
        series_uid: SeriesInstanceUID, "" = blank.
        patient_id: tag PatientID, "" = blank as in anonymised files.
        sex: tag PatientSex.
        age: years.
        bits: stored bits, 8 to 16.
        inverted: MONOCHROME1, small values bright.
        window: use the middle four fifths of the value range, with a matching window.
        jpeg: quality of lossy JPEG pixels (8 bits only); 0 = uncompressed.
    """
    top = 2**bits - 1
    low, high = (round(0.1 * top), round(0.9 * top)) if window else (0, top)
    stored = np.rint(low + image.astype(np.float64) / 255 * (high - low))
    stored = (top - stored if inverted else stored).astype(np.uint8 if bits <= 8 else np.uint16)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, sop_uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
    dataset.Modality, dataset.PatientID, dataset.PatientSex, dataset.ViewPosition = "DX", patient_id, sex, "PA"
    dataset.PatientAge = "" if age is None else f"{age:03d}Y"
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * stored.itemsize, bits, bits - 1
    if window:
        # The standard's linear window runs from centre - 0.5 - (width - 1) / 2 over width - 1 values.
        darkest, brightest = (top - high, top - low) if inverted else (low, high)
        dataset.WindowCenter, dataset.WindowWidth = (darkest + brightest) / 2 + 0.5, brightest - darkest + 1
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    if jpeg:
        code = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, jpeg])[1]
        dataset.PixelData, dataset["PixelData"].VR = encapsulate([code.tobytes()]), "OB"
    else:
        pixels = stored.astype("<u2" if bits > 8 else np.uint8).tobytes()
        dataset.PixelData, dataset["PixelData"].VR = pixels + b"\0" * (len(pixels) % 2), "OW" if bits > 8 else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def outlines(mask: np.ndarray) -> list[list[list[int]]]:
    """The outer contour [[x, y], ..] of each connected component of a mask, largest first; holes are ignored.

    Contours with fewer than three vertices (dots and one-pixel lines) are dropped.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    found = sorted(found, key=cv2.contourArea, reverse=True)
    return [contour[:, 0].tolist() for contour in found if len(contour) > 2]
