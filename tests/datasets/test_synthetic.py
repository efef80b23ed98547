"""The synthetic world: same seed same bytes, and truth that agrees with what is drawn."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from fx_d2.data.annotations import load_spec, load_split
from fx_d2.data.cache import read_full_size
from fx_d2.data.table import BY_NAME, PRETRAINING
from fx_d2.structures import DatasetSpec

SIZE = 128
COUNTS = {"train": 8, "val": 4, "test": 16}


@pytest.fixture(scope="module")
def synthetic(datasets_folder: Path) -> dict[str, ModuleType]:
    names = ("canvas", "draw", "findings", "recipes", "releases")
    return {name: importlib.import_module(f"synthetic.{name}") for name in names}


@pytest.fixture(scope="module")
def root(datasets_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The eleven datasets, drawn as releases and prepared by their scripts."""
    folder = tmp_path_factory.mktemp("synthetic")
    counts = [word for split, count in COUNTS.items() for word in (f"--{split}", str(count))]
    main = importlib.import_module("prepare_synthetic").main
    assert main(["--output", str(folder), "--seed", "3", "--size", str(SIZE), *counts]) == 0
    return folder


def document(root: Path, spec: DatasetSpec, split: str) -> dict[str, Any]:
    return json.loads((root / spec.name / f"{split}.json").read_text())


def documents(root: Path, spec: DatasetSpec) -> list[dict[str, Any]]:
    """The splits that a release has."""
    return [json.loads(file.read_text()) for file in sorted((root / spec.name).glob("*.json"))]


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def test_recipes_speak_the_words_of_their_rows(synthetic: dict[str, ModuleType]) -> None:
    recipes = synthetic["recipes"].RECIPES
    assert set(recipes) == set(BY_NAME)
    assert [spec.name for spec in synthetic["releases"].drawable()] == list(BY_NAME)
    for name, recipe in recipes.items():
        used = {title for classes in recipe.names.values() for title in classes} | {recipe.normal, recipe.not_normal}
        spec = BY_NAME[name]
        assert used <= {"", *spec.cls_classes, *spec.loc_classes, *spec.seg_classes}, name


@pytest.mark.parametrize("spec", PRETRAINING, ids=lambda spec: spec.name)
def test_every_dataset_loads_with_its_row(root: Path, spec: DatasetSpec) -> None:
    assert load_spec(root / spec.name) == spec
    files = sorted((root / spec.name).glob("*.json"))
    records = [record for file in files for record in load_split(file, spec, file.stem)]
    assert len(records) == sum(COUNTS.values())
    for record in records:
        image = read_full_size(record)
        assert image.min() < 40 and image.max() > 200 and image.std() > 40
    assert all(any(record["annotated"][task] for record in records) for task in spec.tasks)
    assert len(COCO(root / spec.name / "train.json").imgs) >= COUNTS["train"] - 1


@pytest.mark.parametrize("spec", PRETRAINING, ids=lambda spec: spec.name)
def test_every_class_is_there_and_absent(root: Path, spec: DatasetSpec) -> None:
    everything = documents(root, spec)
    images = [image for data in everything for image in data["images"]]
    for i, name in enumerate(spec.cls_classes):
        assert {0, 1} <= {image["labels"][i] for image in images}, name
    assert {row["category_id"] for data in everything for row in data["annotations"]} == set(
        range(1, len(spec.loc_classes) + 1)
    )
    for i in range(len(spec.seg_classes)):
        areas = [int(mask_api.area(image["masks"][i])) for image in images]
        assert max(areas) > 0 and min(areas) == 0
    if spec.loc_classes:
        found = sum(len({row["image_id"] for row in data["annotations"]}) for data in everything)
        assert sum(image["boxes_annotated"] for image in images) - found >= len(images) // 3


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
        for image in document(root, spec, "test")["images"]:
            labels = dict(zip(spec.cls_classes, image["labels"], strict=True))
            found = {key for key, value in labels.items() if value in (1, -1)} - {title} - allowed
            assert (labels[title] == 1) == (not found)


@pytest.mark.parametrize("name", ["candid_ptx", "siim_acr"])
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


def test_command_line(datasets_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows with options of their own are prepared as well; wrong input is one line."""
    main = importlib.import_module("prepare_synthetic").main
    options = ["--size", "96", "--train", "3", "--val", "1", "--test", "2"]
    assert main(["--output", str(tmp_path), *options, "--datasets", "vindr_organs,nih_montgomery"]) == 0
    out = capsys.readouterr().out
    assert "nih_montgomery  train" in out and "use it as DATASETS.ROOT" in out
    assert sorted(path.name for path in (tmp_path / "vindr_organs").glob("*.json")) == [
        "test.json",
        "train.json",
        "val.json",
    ]
    counts = [len(document(tmp_path, BY_NAME["nih_montgomery"], split)["images"]) for split in ("train", "val", "test")]
    assert sum(counts) == 6 and counts[0] in (2, 3)
    (tmp_path / "taken").write_text("a file")
    for wrong in (["--output", str(tmp_path / "taken")], ["--output", str(tmp_path), "--datasets", "elsewhere"]):
        assert main([*wrong, *options]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
