"""Rows and dicts of some tasks and classes."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from fx_d2.config import add_fx_config
from fx_d2.data import get_dicts, register_datasets, write_spec, write_split
from fx_d2.data.masks import encode_mask
from fx_d2.data.narrowing import narrow_records, narrow_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import DatasetSpec, FXError

SPEC = DatasetSpec(
    name="both",
    title="Both",
    cls_classes=("mass", "left", "right"),
    loc_classes=("left", "right"),
    seg_classes=("heart", "left", "right"),
    reporting=("mass", "left"),
    published=("right",),
    flip_pairs=(("left", "right"),),
)
HEART, LEFT, RIGHT = (encode_mask(np.arange(64).reshape(8, 8) % 3 == i) for i in range(3))


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """A config on a dataset of two images: all annotated; labels blank and boxes of "left" only."""
    write_spec(tmp_path / "both", SPEC)
    base = {"width": 8, "height": 8}
    rows = [
        {"file_name": "a.png", "patient_id": "a", "labels": [1, 0, 1], "masks": [HEART, None, RIGHT]}
        | {"boxes": [("right", [0, 0, 4, 4]), ("left", [4, 4, 2, 2])]},
        {"file_name": "b.png", "patient_id": "b", "labels": [None, 1, None], "masks": [None, LEFT, None]}
        | {"boxes": [("left", [1, 1, 2, 2])]},
    ]
    write_split(
        tmp_path / "both" / "train.json", spec=SPEC, split="train", image_root="x", images=[r | base for r in rows]
    )
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.DATASETS.ROOT, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = str(tmp_path), ("both_train",), ()
    return cfg


def test_everything_is_used_by_default(cfg: CfgNode) -> None:
    register_datasets(cfg)
    assert MetadataCatalog.get("both_train").spec == SPEC
    assert [record["annotated"] for record in get_dicts("both_train")] == [{"cls": True, "loc": True, "seg": True}] * 2


def test_a_task_alone_leaves_neither_heads_nor_annotations_of_the_others(cfg: CfgNode) -> None:
    cfg.DATASETS.TASKS = ["seg"]
    register_datasets(cfg)
    spec = MetadataCatalog.get("both_train").spec
    assert spec.tasks == ("seg",) and spec.seg_classes == SPEC.seg_classes and spec.flip_pairs == SPEC.flip_pairs
    assert (spec.reporting, spec.published) == ((), ())
    for record in get_dicts("both_train"):
        assert record["annotated"] == {"cls": False, "loc": False, "seg": True}
        assert record["labels"] is None and record["annotations"] == []


def test_classes_keep_their_columns(cfg: CfgNode) -> None:
    cfg.DATASETS.CLASSES = ["right"]
    register_datasets(cfg)
    spec = MetadataCatalog.get("both_train").spec
    assert (spec.cls_classes, spec.loc_classes, spec.seg_classes) == (("right",),) * 3
    assert (spec.reporting, spec.published, spec.flip_pairs) == ((), ("right",), ())
    assert MetadataCatalog.get("both_train").thing_classes == ["right"]
    a, b = get_dicts("both_train")
    assert a["labels"] == [1] and [(box["bbox"], box["category_id"]) for box in a["annotations"]] == [([0, 0, 4, 4], 0)]
    assert a["masks"] == [RIGHT] and a["annotated"] == {"cls": True, "loc": True, "seg": True}
    # No box of the class is a healthy image; a blank label and an unknown mask are none.
    assert b["annotations"] == [] and b["annotated"] == {"cls": False, "loc": True, "seg": False}


def test_an_image_without_boxes_of_any_class_is_not_annotated() -> None:
    record = {"labels": None, "masks": None, "annotations": [], "annotated": {"cls": False, "loc": False, "seg": False}}
    (narrowed,) = narrow_records([record], SPEC, narrow_rows([SPEC], ["loc"])[0])
    assert narrowed["annotated"] == {"cls": False, "loc": False, "seg": False}


def test_the_order_of_classes_is_the_rows(cfg: CfgNode) -> None:
    assert narrow_rows([SPEC], ["loc"], ["right", "left"])[0].loc_classes == ("left", "right")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TASKS", [], "DATASETS.TASKS must name some of"),
        ("TASKS", ["segmentation"], "DATASETS.TASKS must name some of"),
        ("CLASSES", ["lung"], "DATASETS.CLASSES: no dataset has 'lung'.*'heart', 'left'"),
    ],
)
def test_what_is_not_there_is_an_error(cfg: CfgNode, key: str, value: list[str], message: str) -> None:
    cfg.DATASETS[key] = value
    with pytest.raises(FXError, match=message):
        register_datasets(cfg)


def test_a_dataset_of_which_nothing_is_left_is_an_error() -> None:
    rows = [BY_NAME["chexpert"], BY_NAME["tbx11k"]]
    with pytest.raises(FXError, match="'chexpert' has none of DATASETS.TASKS .'loc'."):
        narrow_rows(rows, ["loc"])
    with pytest.raises(FXError, match="'chexpert' has none of .* and DATASETS.CLASSES .'Tuberculosis'."):
        narrow_rows(rows, ["cls", "loc"], ["Tuberculosis"])


def test_labels_that_exclude_each_other_stay_together() -> None:
    row = BY_NAME["rsna_pneumonia"]
    with pytest.raises(FXError, match="'rsna_pneumonia': its labels .* are mutually exclusive"):
        narrow_rows([row], ["cls", "loc"], ["Lung Opacity"])
    assert narrow_rows([row], ["loc"], ["Lung Opacity"])[0].tasks == ("loc",)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_row_can_be_used_for_each_of_its_tasks(name: str) -> None:
    for task in BY_NAME[name].tasks:
        [row] = narrow_rows([BY_NAME[name]], [task])
        assert row.tasks == (task,) and row.classes(task) == BY_NAME[name].classes(task)
