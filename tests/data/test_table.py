"""The table of datasets against the paper's numbers."""

from __future__ import annotations

from fx_d2.data.table import BY_NAME, COMPETITION_CLASSES, FINETUNING, PRETRAINING


def test_eleven_rows_give_twenty_slots() -> None:
    """11 classification, 6 localization and 3 segmentation heads."""
    counts = [sum(task in spec.tasks for spec in PRETRAINING) for task in ("cls", "loc", "seg")]
    assert counts == [11, 6, 3]


def test_class_counts() -> None:
    """Widths of the heads."""
    widths = {spec.name: (len(spec.cls_classes), len(spec.loc_classes), len(spec.seg_classes)) for spec in PRETRAINING}
    assert list(widths.values()) == [
        (14, 0, 0), (14, 0, 0), (6, 0, 0), (1, 0, 0), (14, 0, 0), (1, 1, 0), (1, 1, 0), (1, 1, 1), (3, 1, 0),
        (13, 13, 13), (1, 1, 1),
    ]  # fmt: skip


def test_label_policies() -> None:
    """The reference's policies; MIMIC's classes in its own alphabetical order."""
    mimic, chexpert = BY_NAME["mimic_cxr"], BY_NAME["chexpert"]
    assert mimic.cls_classes[0] == "Atelectasis" and set(mimic.cls_classes) == set(chexpert.cls_classes)
    assert (mimic.uncertain, mimic.blank, chexpert.uncertain, chexpert.blank) == ("ones", "zeros", "soft", "zeros")
    assert mimic.reporting == chexpert.reporting == COMPETITION_CLASSES
    assert [spec.name for spec in PRETRAINING if spec.cls_kind == "softmax"] == ["rsna_pneumonia"]


def test_fine_tuning_targets_are_apart_and_their_pairs_flip() -> None:
    """Targets are found by name, take no part in pretraining, and swap their sides in a mirrored image."""
    assert not set(FINETUNING) & set(PRETRAINING) and all(BY_NAME[spec.name] is spec for spec in FINETUNING)
    ribs, organs = BY_NAME["vindr_ribcxr"], BY_NAME["vindr_organs"]
    assert ribs.flip_permutation("seg") == [*range(10, 20), *range(10)]
    assert organs.flip_permutation("seg") == organs.flip_permutation("loc") == [0, 2, 1]
    assert len(BY_NAME["vindr_local"].loc_classes) == 14


def test_the_published_five_of_mimic() -> None:
    """The places of CheXpert's competition classes in CheXpert's order, read in MIMIC's alphabetical one."""
    mimic, chexpert = BY_NAME["mimic_cxr"], BY_NAME["chexpert"]
    places = [chexpert.cls_classes.index(name) for name in COMPETITION_CLASSES]
    assert {mimic.cls_classes[place] for place in places} == set(mimic.published)
    assert [spec.name for spec in PRETRAINING if spec.published] == ["mimic_cxr"]
