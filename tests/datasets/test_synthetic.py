"""The synthetic world: same seed same bytes, and truth that agrees with what is drawn."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from fx_d2.data.annotations import load_spec, load_split
from fx_d2.data.table import PRETRAINING
from fx_d2.structures import DatasetSpec, FXError

FOLDER = Path(__file__).resolve().parents[2] / "datasets"
SIZE = 128
COUNTS = {"train": 8, "val": 0, "test": 16}


@pytest.fixture(scope="module")
def synthetic() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    names = ("canvas", "draw", "findings", "recipes", "world")
    yield {name: importlib.import_module(f"synthetic.{name}") for name in names}
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def root(synthetic: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic["world"].make_world(folder, seed=3, size=SIZE, counts=COUNTS)
    return folder


def document(root: Path, spec: DatasetSpec, split: str) -> dict[str, Any]:
    return json.loads((root / spec.name / f"{split}.json").read_text())


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def test_same_seed_same_bytes_and_other_seed_other_pixels(synthetic: dict[str, ModuleType], tmp_path: Path) -> None:
    make = synthetic["world"].make_world
    counts = {"train": 3, "val": 2, "test": 0}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make(tmp_path / name, seed=seed, size=SIZE, counts=counts, datasets=["candid_ptx", "mimic_cxr"])
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    other = digest(tmp_path / "c")
    images = [name for name in other if name.endswith(".png")]
    assert len(images) == 10
    assert all(other[name] != digest(tmp_path / "a")[name] for name in images)


def test_made_already_is_skipped_and_other_parameters_make_it_anew(
    synthetic: dict[str, ModuleType], tmp_path: Path
) -> None:
    make = synthetic["world"].make_world
    counts = {"train": 2, "val": 0, "test": 0}
    assert make(tmp_path, seed=0, size=SIZE, counts=counts, datasets=["node21", "siim_acr"])
    before = digest(tmp_path)
    assert make(tmp_path, seed=0, size=SIZE, counts=counts, datasets=["node21", "siim_acr"]) is None
    assert digest(tmp_path) == before
    assert make(tmp_path, seed=0, size=SIZE, counts=counts | {"train": 1}, datasets=["node21"])
    left = [name for name in digest(tmp_path) if name.endswith((".png", ".json"))]
    assert sorted(left) == ["node21/images/train/node21_train_00000.png", "node21/train.json", "synthetic.json"]
    (tmp_path / "node21" / "train.json").unlink()
    assert make(tmp_path, seed=0, size=SIZE, counts=counts | {"train": 1}, datasets=["node21"])


def test_a_dataset_that_was_not_drawn_is_left_alone(synthetic: dict[str, ModuleType], tmp_path: Path) -> None:
    real = tmp_path / "node21" / "train.json"
    real.parent.mkdir()
    real.write_text("{}")
    with pytest.raises(FXError, match="not drawn"):
        synthetic["world"].make_world(tmp_path, seed=0, size=SIZE, counts={"train": 1}, datasets=["node21"])
    assert real.read_text() == "{}"


@pytest.mark.parametrize("spec", PRETRAINING, ids=lambda spec: spec.name)
def test_every_dataset_loads_with_its_row(root: Path, spec: DatasetSpec) -> None:
    assert load_spec(root / spec.name) == spec
    for split in ("train", "test"):
        records = load_split(root / spec.name / f"{split}.json", spec, split)
        assert len(records) == COUNTS[split]
        for record in records:
            image = cv2.imread(record["file_name"], cv2.IMREAD_UNCHANGED)
            assert image.dtype == np.uint8 and image.shape == (record["height"], record["width"])
            assert image.min() < 40 and image.max() > 200 and image.std() > 40
            assert all(record["annotated"][task] for task in spec.tasks)
    assert len(COCO(root / spec.name / "train.json").imgs) == COUNTS["train"]
    assert not (root / spec.name / "val.json").exists()


@pytest.mark.parametrize("spec", PRETRAINING, ids=lambda spec: spec.name)
def test_every_class_is_there_and_absent_in_test(root: Path, spec: DatasetSpec) -> None:
    test = document(root, spec, "test")
    labels = [image["labels"] for image in test["images"]]
    for i, name in enumerate(spec.cls_classes):
        values = {row[i] for row in labels}
        assert {0, 1} <= values, f"{name}: {values}"
        assert -1 not in values
    boxed = {row["category_id"] for row in test["annotations"]}
    assert boxed == set(range(1, len(spec.loc_classes) + 1))
    for i in range(len(spec.seg_classes)):
        areas = [int(mask_api.area(image["masks"][i])) for image in test["images"]]
        assert max(areas) > 0 and min(areas) == 0
    if spec.loc_classes:
        empty = {image["id"] for image in test["images"]} - {row["image_id"] for row in test["annotations"]}
        assert len(empty) >= COUNTS["test"] // 3 and all(image["boxes_annotated"] for image in test["images"])


def test_uncertain_and_blank_labels_only_where_reports_have_them(root: Path) -> None:
    for spec in PRETRAINING:
        values = [value for image in document(root, spec, "train")["images"] for value in image["labels"]]
        reports = spec.name in ("chexpert", "mimic_cxr")
        assert (-1 in values) == reports and (None in values) == reports


def test_rsna_has_exactly_one_class_and_no_finding_means_none(root: Path) -> None:
    specs = {spec.name: spec for spec in PRETRAINING}
    for image in document(root, specs["rsna_pneumonia"], "test")["images"]:
        assert sum(image["labels"]) == 1
    for name, title, allowed in (("chexpert", "No Finding", {"Support Devices"}), ("vindr_cxr", "No finding", set())):
        spec = specs[name]
        for image in document(root, spec, "train")["images"]:
            labels = dict(zip(spec.cls_classes, image["labels"], strict=True))
            found = {key for key, value in labels.items() if value in (1, -1)} - {title} - allowed
            assert (labels[title] == 1) == (not found)


@pytest.mark.parametrize("name", ["candid_ptx", "siim_acr", "chestx_det"])
def test_labels_boxes_and_masks_agree(root: Path, name: str) -> None:
    spec = next(spec for spec in PRETRAINING if spec.name == name)
    data = document(root, spec, "test")
    for image in data["images"]:
        rows = [row for row in data["annotations"] if row["image_id"] == image["id"]]
        for i, label in enumerate(image["labels"]):
            mask = mask_api.decode(image["masks"][i])
            boxes = np.array([row["bbox"] for row in rows if row["category_id"] == i + 1])
            assert (label == 1) == bool(mask.any()) == bool(len(boxes))
            if label == 1:
                low, high = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
                assert [*low, *(high - low)] == extent(mask)


def test_patients_of_two_splits_differ(synthetic: dict[str, ModuleType], root: Path) -> None:
    for spec in PRETRAINING:
        patients = [
            {image["patient_id"] for image in document(root, spec, split)["images"]} for split in ("train", "test")
        ]
        assert not patients[0] & patients[1]
        assert len(patients[0]) == COUNTS["train"]


def test_every_kind_is_drawn_where_its_mask_says(synthetic: dict[str, ModuleType]) -> None:
    draw, kinds = synthetic["draw"].draw, synthetic["findings"].KINDS
    for kind in kinds:
        film = draw([kind], [1, 2], SIZE)
        again = draw([kind], [1, 2], SIZE)
        assert np.array_equal(film.image, again.image)
        assert film.findings and {finding.kind for finding in film.findings} == {kind}
        for finding in film.findings:
            assert finding.mask.sum() >= 8 and list(finding.box) == extent(finding.mask)
        if kinds[kind].prepare:
            continue
        healthy = draw([], [1, 2], SIZE)
        change = np.abs(film.image.astype(int) - healthy.image)
        mask = np.any([finding.mask for finding in film.findings], axis=0)
        assert change[mask].mean() > 3 * change[~mask].mean(), kind


def test_pneumothorax_is_dark_without_markings_behind_a_bright_line(synthetic: dict[str, ModuleType]) -> None:
    for seed in range(4):
        film = synthetic["draw"].draw(["pneumothorax"], seed, 256)
        (finding,) = film.findings
        side = max(film.lungs, key=lambda s: (film.lungs[s] & finding.mask).sum())
        other = film.lungs[-side][:, ::-1] & finding.mask
        kernel = np.ones((3, 3), np.uint8)
        deep = cv2.erode(finding.mask.astype(np.uint8), kernel, iterations=3) > 0
        ring = (cv2.dilate(finding.mask.astype(np.uint8), kernel, iterations=6) > 0) & film.lungs[side] & ~finding.mask
        line = (cv2.dilate(finding.mask.astype(np.uint8), kernel, iterations=2) > 0) & ring
        assert film.image[deep].mean() < film.image[:, ::-1][other].mean() - 5
        assert film.image[deep].mean() < film.image[ring].mean() - 15
        assert film.image[line].mean() > film.image[ring & ~line].mean()


def test_heart_width_follows_cardiomegaly(synthetic: dict[str, ModuleType]) -> None:
    draw = synthetic["draw"].draw
    for seed in range(5):
        for kinds, low, high in (([], 0.36, 0.5), (["cardiomegaly"], 0.55, 0.72)):
            film = draw(kinds, seed, SIZE)
            heart, chest = (extent(mask)[2] for mask in (film.heart, film.lungs[-1] | film.lungs[1]))
            assert low < heart / chest < high


def test_the_patients_right_lung_is_on_the_left_of_the_film(synthetic: dict[str, ModuleType]) -> None:
    film = synthetic["draw"].draw([], 0, SIZE)
    middle = {side: np.nonzero(mask)[1].mean() for side, mask in film.lungs.items()}
    assert middle[-1] < SIZE / 2 < middle[1]
    columns = np.nonzero(film.heart)[1]
    assert columns.mean() > (middle[-1] + middle[1]) / 2


def test_command_line(synthetic: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("prepare_synthetic").main
    options = ["--size", "96", "--train", "2", "--val", "0", "--test", "0", "--datasets", "node21"]
    world, taken = tmp_path / "world", tmp_path / "taken"
    taken.write_text("a file")
    assert main(["--output", str(world), *options]) == 0
    assert "node21" in capsys.readouterr().out
    assert len(list((world / "node21" / "images" / "train").glob("*.png"))) == 2
    assert main(["--output", str(world), *options]) == 0
    assert "nothing to do" in capsys.readouterr().out
    for wrong in (["--output", str(taken), *options], ["--output", str(world), "--size", "8"]):
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(FXError, match="no recipe for"):
        synthetic["world"].choose(["elsewhere"])
