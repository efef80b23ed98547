"""Registration of rows and splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from fx_d2.data.annotations import write_spec
from fx_d2.data.catalog import (
    check_images,
    dataset_root,
    evaluation_splits,
    get_dicts,
    register_datasets,
    register_rows,
    register_spec,
)
from fx_d2.data.table import BY_NAME
from fx_d2.structures import DatasetSpec, FXError, spec_of, specs_of


def test_register_own_row_and_again_elsewhere(
    cfg: CfgNode, make_dataset: Callable[..., Path], tmp_path: Path, spec: DatasetSpec
) -> None:
    """Registering is idempotent, and another root replaces."""
    make_dataset(splits=("train", "test"))
    assert register_datasets(cfg) == register_datasets(cfg) == ("toy_train", "toy_val", "toy_test")
    metadata = MetadataCatalog.get("toy_train")
    assert spec_of("toy_train") == spec and metadata.evaluator_type == "fx" and metadata.split == "train"
    assert metadata.thing_classes == ["left_lung", "right_lung"]
    make_dataset(root=tmp_path / "second", splits=("train", "test"))
    cfg.DATASETS.ROOT = str(tmp_path / "second")
    register_datasets(cfg)
    assert "second" in get_dicts("toy_train")[0]["file_name"]
    assert len(get_dicts("toy_train")) == 2 and len(get_dicts("toy_train", limit=1)) == 1


def test_root_from_the_environment(cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATASETS.ROOT first, then the variable; a missing root is named."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "absent"))
    assert dataset_root(cfg) == tmp_path
    cfg.DATASETS.ROOT = ""
    with pytest.raises(FXError, match="absent"):
        dataset_root(cfg)
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets" / "prepared").mkdir(parents=True)
    assert dataset_root(cfg) == Path("datasets/prepared")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heart_train", "unknown dataset 'heart'.*chexpert.*prepare_folder"),
        ("toy", "'<row>_<split>'"),
        ("chexpert_train", "chexpert_train: annotation file .* not found"),
        ("toy_val", "toy_val: annotation file"),
    ],
)
def test_bad_names(cfg: CfgNode, make_dataset: Callable[..., Path], name: str, message: str) -> None:
    """Unknown rows, names without a split, splits that were not prepared."""
    make_dataset()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    with pytest.raises(FXError, match=message):
        register_datasets(cfg)


def test_row_of_the_table_keeps_its_classes(cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A dataset.yaml may change a policy of a row of the table, which is said, but not its classes."""
    table = BY_NAME["nih_shenzhen"]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("nih_shenzhen_train",), ()
    write_spec(tmp_path / table.name, replace(table, cls_classes=("TB",)))
    with pytest.raises(FXError, match="built-in dataset with other cls classes"):
        register_datasets(cfg)
    write_spec(tmp_path / table.name, replace(table, uncertain="ones"))
    (tmp_path / table.name / "train.json").write_text("{}")
    register_datasets(cfg)
    assert spec_of("nih_shenzhen_train").uncertain == "ones"
    (line,) = [record.getMessage() for record in caplog.records if "dataset.yaml" in record.getMessage()]
    assert line.endswith(": uncertain")
    with pytest.raises(FXError, match="other cls classes"):
        register_spec(replace(table, cls_classes=("TB",)), tmp_path)


def test_a_folder_is_called_as_its_row(cfg: CfgNode, tmp_path: Path, spec: DatasetSpec) -> None:
    write_spec(tmp_path / "copy", spec)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("copy_train",), ()
    with pytest.raises(FXError, match="dataset.yaml: .*'toy'.*'copy'"):
        register_datasets(cfg)


def test_rows_without_their_data(cfg: CfgNode, tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    cfg.DATASETS.ROOT, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = str(tmp_path / "none"), ("rsna_pneumonia_train",), ()
    register_rows(cfg)
    assert specs_of(cfg.DATASETS.TRAIN)[0] == BY_NAME["rsna_pneumonia"]
    cfg.DATASETS.TRAIN = ("toy_train",)
    with pytest.raises(FXError, match="unknown dataset 'toy'"):
        register_rows(cfg)
    with pytest.raises(FXError, match="must be '<row>_<split>'"):
        cfg.DATASETS.TRAIN = ("toy",)
        register_rows(cfg)


def test_register_spec(tmp_path: Path, make_dataset: Callable[..., Path], spec: DatasetSpec) -> None:
    """One call registers a dataset of one's own; without files it is refused."""
    row = replace(spec, name="mine")
    with pytest.raises(FXError, match="no annotation file"):
        register_spec(row, tmp_path)
    assert register_spec(row, make_dataset(row=row)) == ("mine_train",)
    assert len(DatasetCatalog.get("mine_train")) == 2


def test_check_images(cfg: CfgNode, make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    """Missing images and masks are counted and the first is named."""
    make_dataset(splits=("train", "test"))
    register_datasets(cfg)
    dicts = get_dicts("toy_train")
    check_images(dicts * 3)
    Path(dicts[1]["file_name"]).unlink()
    for records, count in ((dicts, "1 of 2"), (dicts * 3, "3 of 6")):
        with pytest.raises(FXError, match=f"train_b.png: image file not found \\({count}"):
            check_images(records)
    moved = [dicts[0] | {"file_name": str(tmp_path / "gone" / f"{i}.png")} for i in range(5)]
    with pytest.raises(FXError, match=r"0.png: image file not found \(5 of 5"):
        check_images(moved)
    dicts = get_dicts("toy_test")
    dicts[1]["masks"] = [None, {"file": str(tmp_path / "none.png")}, dicts[0]["masks"][0]]
    with pytest.raises(FXError, match=r"none.png: mask file not found \(1 of 1 masks of 'toy'"):
        check_images(dicts)


def test_a_training_evaluates_validation_splits_and_a_request_what_it_names(
    cfg: CfgNode, make_dataset: Callable[..., Path], spec: DatasetSpec
) -> None:
    make_dataset(splits=("train", "test"))
    register_datasets(cfg)
    assert evaluation_splits(cfg, training=False) == ("toy_test",)
    assert evaluation_splits(cfg, training=True) == ()  # no file
    make_dataset(splits=("val",))
    cfg.DATASETS.TEST = ("toy_test", "toy_train")
    assert evaluation_splits(cfg, training=True) == ("toy_val",)
    assert evaluation_splits(cfg, training=False) == ("toy_test", "toy_train")
    cfg.TEST.SPLIT = "test"
    assert evaluation_splits(cfg, training=True) == evaluation_splits(cfg, training=False) == ("toy_test",)
    make_dataset(row=replace(spec, name="other"))
    cfg.DATASETS.TEST = ("toy_test", "other_train")
    register_datasets(cfg)
    assert evaluation_splits(cfg, training=False) == ("toy_test",)  # the other one has no such file
    cfg.DATASETS.TEST = ("toy_test",)
    (make_dataset() / "toy" / "test.json").unlink()
    with pytest.raises(FXError, match="TEST.SPLIT 'test': no dataset .* toy_test"):
        evaluation_splits(cfg, training=False)
    cfg.TEST.SPLIT = "tset"
    with pytest.raises(FXError, match="must be one of .* not 'tset'"):
        evaluation_splits(cfg, training=True)
