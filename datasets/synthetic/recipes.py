"""Class names and image appearance of each dataset: one recipe per row of the dataset table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .film import FilmStyle


@dataclass(frozen=True)
class Recipe:
    """How one dataset labels synthetic findings.

    Attributes:
        names: kind -> classes that it makes positive, in every task that has such a class.
        others: kinds without a class of their own: abnormal, but negative for the dataset's classes.
        normal: class that is positive in an image without findings; "" = none.
        not_normal: class that is positive in an image with only `others`; "" = none.
        healthy_with: kinds that leave `normal` positive.
        uncertain: kinds that are sometimes drawn faintly and then labelled -1.
        blank: probability that a negative label is left blank (null), per split.
        style: appearance of the images.
    """

    names: Mapping[str, tuple[str, ...]]
    others: tuple[str, ...] = ()
    normal: str = ""
    not_normal: str = ""
    healthy_with: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    blank: Mapping[str, float] = field(default_factory=dict)
    style: FilmStyle = FilmStyle()


_REPORTS = {
    "wide_mediastinum": ("Enlarged Cardiomediastinum",),
    "cardiomegaly": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "opacity": ("Lung Opacity",),
    "nodule": ("Lung Lesion", "Lung Opacity"),
    "mass": ("Lung Lesion", "Lung Opacity"),
    "edema": ("Edema", "Lung Opacity"),
    "consolidation": ("Consolidation", "Lung Opacity"),
    "pneumonia": ("Pneumonia", "Lung Opacity"),
    "atelectasis": ("Atelectasis", "Lung Opacity"),
    "pneumothorax": ("Pneumothorax",),
    "effusion": ("Pleural Effusion",),
    "pleural_thickening": ("Pleural Other",),
    "fracture": ("Fracture",),
    "devices": ("Support Devices",),
}
"""The CheXpert labels; opacities include their parent "Lung Opacity", as in the hierarchy of the CheXpert paper."""

_VINDR = FilmStyle(aspect=0.9, contrast=1.1)
"""Style of the VinDr datasets."""

_DOUBTFUL = ("edema", "consolidation", "pneumonia", "atelectasis", "effusion", "opacity")

RECIPES: dict[str, Recipe] = {
    "chexpert": Recipe(
        _REPORTS,
        normal="No Finding",
        healthy_with=("devices",),
        uncertain=_DOUBTFUL,
        blank={"train": 0.5},
        style=FilmStyle(aspect=1.15, gamma=1.05),
    ),
    "nih_chestxray14": Recipe(
        {
            "atelectasis": ("Atelectasis",),
            "cardiomegaly": ("Cardiomegaly",),
            "effusion": ("Effusion",),
            "infiltration": ("Infiltration",),
            "mass": ("Mass",),
            "nodule": ("Nodule",),
            "pneumonia": ("Pneumonia",),
            "pneumothorax": ("Pneumothorax",),
            "consolidation": ("Consolidation",),
            "edema": ("Edema",),
            "emphysema": ("Emphysema",),
            "fibrosis": ("Fibrosis",),
            "pleural_thickening": ("Pleural_Thickening",),
            "hernia": ("Hernia",),
        },
        others=("devices",),
    ),
    "vindr_cxr": Recipe(
        {
            "effusion": ("Pleural effusion",),
            "mass": ("Lung tumor",),
            "pneumonia": ("Pneumonia",),
            "tuberculosis": ("Tuberculosis",),
            "emphysema": ("Other diseases",),
            "fibrosis": ("Other diseases",),
            "cardiomegaly": ("Other diseases",),
        },
        normal="No finding",
        style=_VINDR,
    ),
    "nih_shenzhen": Recipe({"tuberculosis": ("Tuberculosis",)}, style=FilmStyle(contrast=1.08, marker=0.9)),
    "mimic_cxr": Recipe(
        _REPORTS,
        normal="No Finding",
        healthy_with=("devices",),
        uncertain=_DOUBTFUL,
        blank={"train": 0.5, "val": 0.2, "test": 0.1},
        style=FilmStyle(aspect=0.85, gamma=0.92, noise=3.5),
    ),
    "tbx11k": Recipe(
        {"tuberculosis": ("Tuberculosis",)},
        others=("pneumonia", "effusion", "cardiomegaly", "mass"),
        style=FilmStyle(gamma=1.1),
    ),
    "node21": Recipe(
        {"nodule": ("Nodule",)}, others=("effusion", "cardiomegaly"), style=FilmStyle(marker=0.0, collimation=0.0)
    ),
    "candid_ptx": Recipe(
        {"pneumothorax": ("Pneumothorax",)}, others=("devices", "fracture", "effusion"), style=FilmStyle(noise=1.8)
    ),
    "rsna_pneumonia": Recipe(
        {"consolidation": ("Lung Opacity",), "pneumonia": ("Lung Opacity",), "opacity": ("Lung Opacity",)},
        others=("cardiomegaly", "nodule", "emphysema", "pneumothorax", "pleural_thickening"),
        normal="Normal",
        not_normal="No Lung Opacity / Not Normal",
        style=FilmStyle(gamma=0.95, noise=3.0),
    ),
    "chestx_det": Recipe(
        {
            "atelectasis": ("Atelectasis",),
            "calcification": ("Calcification",),
            "cardiomegaly": ("Cardiomegaly",),
            "consolidation": ("Consolidation",),
            "diffuse_nodules": ("Diffuse Nodule",),
            "effusion": ("Effusion",),
            "emphysema": ("Emphysema",),
            "fibrosis": ("Fibrosis",),
            "fracture": ("Fracture",),
            "mass": ("Mass",),
            "nodule": ("Nodule",),
            "pleural_thickening": ("Pleural Thickening",),
            "pneumothorax": ("Pneumothorax",),
        }
    ),
    "siim_acr": Recipe({"pneumothorax": ("Pneumothorax",)}, others=("devices", "nodule", "atelectasis")),
    "vindr_organs": Recipe({}, others=("effusion", "nodule", "consolidation"), style=_VINDR),
    "vindr_local": Recipe(
        {
            "wide_mediastinum": ("Aortic enlargement",),
            "atelectasis": ("Atelectasis",),
            "calcification": ("Calcification",),
            "cardiomegaly": ("Cardiomegaly",),
            "consolidation": ("Consolidation",),
            "edema": ("ILD",),
            "infiltration": ("Infiltration",),
            "opacity": ("Lung Opacity",),
            "nodule": ("Nodule/Mass",),
            "mass": ("Nodule/Mass",),
            "fracture": ("Other lesion",),
            "hernia": ("Other lesion",),
            "effusion": ("Pleural effusion",),
            "pleural_thickening": ("Pleural thickening",),
            "pneumothorax": ("Pneumothorax",),
            "fibrosis": ("Pulmonary fibrosis",),
        },
        style=_VINDR,
    ),
    "vindr_ribcxr": Recipe({}, others=("effusion", "nodule"), style=_VINDR),
    "nih_montgomery": Recipe({"tuberculosis": ()}, style=FilmStyle(aspect=1.1, marker=0.9)),
    "jsrt": Recipe({"nodule": ()}, style=FilmStyle(marker=0.0, collimation=0.0)),
}
"""Recipe by dataset name."""
