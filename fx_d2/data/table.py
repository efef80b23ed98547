"""The dataset table: the eleven pretraining datasets in the order of Foundation X's Table 1, then the fine-tuning ones.

Labels are bound by *name*: a preparation script looks up columns by header, never by position (the public code paired
MIMIC's alphabetical columns with CheXpert's order, so its "5 classes" were different ones).
If a release has no official split, `expected` gives the number of images as ("total", n).
"""

from __future__ import annotations

from fx_d2.structures import DatasetSpec

COMPETITION_CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five classes of the CheXpert competition, whose mean AUROC the paper reports for CheXpert and MIMIC."""

CHEXPERT_CLASSES = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 labels of the CheXpert labeller, in the order of the csv header of CheXpert."""

NIH14_CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""The 14 findings of ChestX-ray14, spelled as in Data_Entry_2017.csv."""

CHESTX_DET_CLASSES = (
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "Diffuse Nodule",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Fracture",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumothorax",
)
"""The 13 findings of ChestX-Det, used for labels, boxes and masks."""

PRETRAINING: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        name="chexpert",
        title="CheXpert",
        cls_classes=CHEXPERT_CLASSES,
        uncertain="soft",
        blank="zeros",
        reporting=COMPETITION_CLASSES,
        source="Stanford AIMI, CheXpert-v1.0",
        licence="Stanford University Dataset Research Use Agreement; registration",
        expected=(("train", 223414), ("val", 234), ("test", 668)),
    ),
    DatasetSpec(
        name="nih_chestxray14",
        title="NIH ChestX-ray14",
        cls_classes=NIH14_CLASSES,
        source="NIH Clinical Center, ChestX-ray14 (2017), official split",
        licence="open; cite Wang et al., CVPR 2017, and acknowledge the NIH Clinical Center",
        expected=(("train", 75312), ("val", 11212), ("test", 25596)),
    ),
    DatasetSpec(
        name="vindr_cxr",
        title="VinDr-CXR",
        cls_classes=(
            "Pleural effusion",
            "Lung tumor",
            "Pneumonia",
            "Tuberculosis",
            "Other diseases",
            "No finding",
        ),
        source="PhysioNet, VinDr-CXR 1.0.0; train label = OR of the three readers",
        licence="PhysioNet credentialed access, data use agreement",
        expected=(("train", 15000), ("test", 3000)),
    ),
    DatasetSpec(
        name="nih_shenzhen",
        title="NIH Shenzhen CXR",
        cls_classes=("Tuberculosis",),
        source="U.S. National Library of Medicine, Shenzhen chest X-ray set (ChinaSet_AllFiles)",
        licence="open for research; cite Jaeger et al. 2014",
        expected=(("train", 463), ("val", 65), ("test", 134)),
    ),
    DatasetSpec(
        name="mimic_cxr",
        title="MIMIC-II (MIMIC-CXR)",
        cls_classes=tuple(sorted(CHEXPERT_CLASSES)),
        uncertain="ones",
        blank="zeros",
        reporting=COMPETITION_CLASSES,
        # Indices in CheXpert's order applied to alphabetical columns: the five classes behind the published 78.94.
        published=("No Finding", "Consolidation", "Lung Lesion", "Fracture", "Pleural Other"),
        source="PhysioNet, MIMIC-CXR-JPG 2.0.0, CheXpert labels, official split",
        licence="PhysioNet credentialed access, data use agreement",
        expected=(("train", 368960), ("val", 2991), ("test", 5159)),
    ),
    DatasetSpec(
        name="tbx11k",
        title="TBX11K",
        cls_classes=("Tuberculosis",),
        loc_classes=("Tuberculosis",),
        source="TBX11K (Liu et al., CVPR 2020), TBX11K_{train,val}.json, all TB categories as one class",
        licence="non-commercial research; the authors' code is CC BY-NC-SA 4.0",
        expected=(("train", 6600), ("val", 1800)),
    ),
    DatasetSpec(
        name="node21",
        title="NODE21",
        cls_classes=("Nodule",),
        loc_classes=("Nodule",),
        source="Zenodo, NODE21 training set",
        licence="see the Zenodo record",
        expected=(("total", 4882),),
    ),
    DatasetSpec(
        name="candid_ptx",
        title="CANDID-PTX",
        cls_classes=("Pneumothorax",),
        loc_classes=("Pneumothorax",),
        seg_classes=("Pneumothorax",),
        source="figshare, CANDID-PTX; boxes derived from the masks",
        licence="data use agreement with the owners",
        expected=(("total", 19237),),
    ),
    DatasetSpec(
        name="rsna_pneumonia",
        title="RSNA Pneumonia",
        cls_classes=("Normal", "No Lung Opacity / Not Normal", "Lung Opacity"),
        loc_classes=("Lung Opacity",),
        cls_kind="softmax",
        source="Kaggle, RSNA Pneumonia Detection Challenge 2018, stage 2 training images",
        licence="Kaggle competition rules",
        expected=(("train", 21295), ("val", 2680), ("test", 2709)),
    ),
    DatasetSpec(
        name="chestx_det",
        title="ChestX-Det",
        cls_classes=CHESTX_DET_CLASSES,
        loc_classes=CHESTX_DET_CLASSES,
        seg_classes=CHESTX_DET_CLASSES,
        source="Deepwise AI Lab, ChestX-Det (images of ChestX-ray14)",
        licence="research use; see the release",
        expected=(("train", 3025), ("test", 553)),
    ),
    DatasetSpec(
        name="siim_acr",
        title="SIIM-ACR",
        cls_classes=("Pneumothorax",),
        loc_classes=("Pneumothorax",),
        seg_classes=("Pneumothorax",),
        source="SIIM-ACR Pneumothorax Segmentation 2019; boxes derived from the masks",
        licence="competition rules",
        expected=(("total", 12047),),
    ),
)
"""The pretraining datasets, in the order of a cycle."""

VINDR_LOCAL_CLASSES = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
)
"""The 14 box classes of the VinBigData competition, in the order of their class ids."""

RIB_CLASSES = tuple(f"{side}{number}" for side in "RL" for number in range(1, 11))
"""Ribs 1 to 10 on the patient's right, then on the left."""

ORGAN_CLASSES = ("Heart", "Left Lung", "Right Lung")
"""The organs of CheXmask; left is the patient's left."""

FINETUNING: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        name="vindr_organs",
        title="VinDr-CXR organs (CheXmask)",
        loc_classes=ORGAN_CLASSES,
        seg_classes=ORGAN_CLASSES,
        flip_pairs=(("Left Lung", "Right Lung"),),
        source="PhysioNet, VinDr-CXR 1.0.0 with the masks of CheXmask; boxes are the masks' extents",
        licence="VinDr-CXR: PhysioNet credentialed access; CheXmask: see its PhysioNet page",
        expected=(("train", 15000), ("test", 3000)),
    ),
    DatasetSpec(
        name="vindr_local",
        title="VinDr-CXR local findings",
        loc_classes=VINDR_LOCAL_CLASSES,
        source="PhysioNet, VinDr-CXR 1.0.0, boxes",
        licence="PhysioNet credentialed access, data use agreement",
        expected=(("train", 15000), ("test", 3000)),
    ),
    DatasetSpec(
        name="vindr_ribcxr",
        title="VinDr-RibCXR",
        seg_classes=RIB_CLASSES,
        flip_pairs=tuple((f"R{number}", f"L{number}") for number in range(1, 11)),
        source="VinBigData, VinDr-RibCXR",
        licence="on request from VinBigData; see its page",
        expected=(("train", 196), ("val", 49)),
    ),
    DatasetSpec(
        name="nih_montgomery",
        title="NIH Montgomery",
        seg_classes=("Lungs",),
        source="U.S. National Library of Medicine, Montgomery County chest X-ray set",
        licence="open for research; cite Jaeger et al. 2014",
        expected=(("total", 138),),
    ),
    DatasetSpec(
        name="jsrt",
        title="JSRT (SCR)",
        seg_classes=("Heart", "Lungs", "Clavicles"),
        source="JSRT database with the masks of SCR",
        licence="JSRT: research use after registration; SCR: see its page, cite van Ginneken et al. 2006",
        expected=(("total", 247),),
    ),
)
"""Fine-tuning datasets, which are not part of the pretraining cycle."""

BY_NAME: dict[str, DatasetSpec] = {spec.name: spec for spec in (*PRETRAINING, *FINETUNING)}
"""All dataset rows by name."""
