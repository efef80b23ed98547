from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from fx_d2.evaluation import (
    LocalizationEvaluator,
    build_evaluators,
    paired_differences,
    read_scores,
    scores_spec,
)
from fx_d2.evaluation.image_scores import write_scores
from fx_d2.evaluation.localization import IOU_THRESHOLDS, BoxRow
from fx_d2.evaluation.segmentation import FIELDS
from fx_d2.evaluation.subgroups import ImageInfo
from fx_d2.structures import DatasetSpec, FXError

SPEC = DatasetSpec(
    name="films",
    title="Films",
    cls_classes=("a", "b", "never"),
    loc_classes=("nodule", "mass"),
    seg_classes=("lung",),
    reporting=("b", "a"),
    published=("a",),
)
IMAGES, DRAWS, SEED = 24, 200, 5
PATIENTS = [f"p{i // 2}" for i in range(IMAGES)]
Rows = dict[str, dict[int, object]]


def rows_of(seed: int) -> Rows:
    """Random rows; the truth does not depend on the seed, and some images are annotated for some tasks only."""
    truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
    rows: Rows = {"cls": {}, "loc": {}, "seg": {}}
    for image in range(1, IMAGES + 1):
        labels = truth.integers(0, 2, 3).astype(np.float32)
        labels[2] = np.nan
        if image == 3:
            labels[0] = np.nan
        rows["cls"][image] = (rng.integers(0, 7, 3) / 7 + 0.2 * np.nan_to_num(labels)).astype(np.float32), labels
        boxes, count = truth.integers(0, 3, 2).astype(np.int32), int(rng.integers(0, 6))
        classes = rng.integers(0, 2, count).astype(np.int16)
        rank = np.array([(classes[:i] == c).sum() for i, c in enumerate(classes)], np.int16)
        hits = np.repeat((rng.random(count) < 0.4).astype(np.int8)[:, None], len(IOU_THRESHOLDS) + 1, axis=1)
        # No two images share a score: copies of an image stand together wherever they are sorted.
        scores = np.sort((rng.permutation(7)[:count] + image / 99) / 8)[::-1].astype(np.float32)
        if image % 5:
            rows["loc"][image] = BoxRow(scores=scores, classes=classes, rank=rank, hits=hits, truth=boxes)
        table = rng.random((len(FIELDS), 1))
        table[FIELDS.index("positive")] = table[FIELDS.index("network_positive")] = truth.integers(0, 2)
        if image % 4:
            rows["seg"][image] = table
    return rows


def write(path: Path, rows: Rows, patients: list[str] = PATIENTS, tasks: tuple[str, ...] = SPEC.tasks) -> Path:
    images = {i + 1: ImageInfo(f"{i}.png", patients[i], "", "", "") for i in range(IMAGES)}
    arrays = {}
    for evaluator in build_evaluators(SPEC, tasks):
        arrays |= evaluator.arrays(rows[evaluator.task], list(images))
    write_scores(path, SPEC, images, arrays)
    return path


def drawn_images(images: list[int]) -> list[list[int]]:
    """The images of each draw, copied as often as they are drawn."""
    known = [PATIENTS[i - 1] for i in images]
    names, generator = sorted(set(known)), np.random.default_rng(SEED)
    draws = (generator.integers(0, len(names), len(names)) for _ in range(DRAWS))
    return [[i for k in draw for i in images if PATIENTS[i - 1] == names[k]] for draw in draws]


def test_rows_are_restored_from_the_file(tmp_path: Path) -> None:
    rows = rows_of(1)
    arrays = read_scores(write(tmp_path / "a.npz", rows))
    spec = scores_spec(arrays)
    for key in ("name", "cls_classes", "loc_classes", "seg_classes", "reporting", "published"):
        assert getattr(spec, key) == getattr(SPEC, key)
    for evaluator in build_evaluators(spec):
        restored = evaluator.restored(arrays)
        assert restored.keys() == rows[evaluator.task].keys()
        again, first = evaluator.metrics(restored), evaluator.metrics(rows[evaluator.task])
        assert again == pytest.approx(first, abs=0, nan_ok=True) and again["images"] == len(restored)
        values = evaluator.drawn(restored)(np.ones((1, len(restored)), np.int64))
        assert all(values[key][0] == pytest.approx(first[key], abs=1e-12, nan_ok=True) for key in values)


@pytest.fixture
def found(tmp_path: Path) -> tuple[Rows, Rows, dict]:
    first, second = rows_of(1), rows_of(2)
    files = [read_scores(write(tmp_path / f"{i}.npz", rows)) for i, rows in enumerate((first, second))]
    return first, second, paired_differences(*files, draws=DRAWS, seed=SEED)


@pytest.mark.parametrize(("metric", "function"), [("auroc", roc_auc_score), ("ap", average_precision_score)])
def test_labels_agree_with_drawing_the_images_themselves(found: tuple, metric: str, function: object) -> None:
    first, second, pairs = found

    def mean(rows: Rows, images: list[int]) -> float:
        values = []
        for k in (1, 0):
            known = [(rows["cls"][i][1][k], rows["cls"][i][0][k]) for i in images if not np.isnan(rows["cls"][i][1][k])]
            values.append(function(*zip(*known, strict=True)) if len({label for label, _ in known}) == 2 else np.nan)
        return float(np.mean(values))

    gains = [mean(second, images) - mean(first, images) for images in drawn_images(list(first["cls"]))]
    pair = pairs[f"cls/{metric}"]
    assert (pair.low, pair.high) == pytest.approx(np.nanpercentile(gains, [2.5, 97.5]), abs=1e-12)
    assert pair.better == pytest.approx(np.mean(np.array(gains)[~np.isnan(gains)] > 0))
    every = list(first["cls"])
    assert pair.difference == pytest.approx(mean(second, every) - mean(first, every), abs=1e-12)
    assert pairs["cls/auroc_published"] == pairs["cls/auroc/a"]
    assert np.isnan(pairs["cls/auroc/never"].low)


def test_boxes_agree_with_drawing_the_images_themselves(found: tuple) -> None:
    first, second, pairs = found

    def value(rows: Rows, images: list[int]) -> float:
        copies = {k: rows["loc"][i] for k, i in enumerate(images)}
        return LocalizationEvaluator(SPEC).metrics(copies)["AP40/mass"]

    images = list(first["loc"])
    gains = [value(second, drawn) - value(first, drawn) for drawn in drawn_images(images)]
    pair = pairs["loc/AP40/mass"]
    assert (pair.low, pair.high) == pytest.approx(np.percentile(gains, [2.5, 97.5]), abs=1e-12)
    assert pair.first == pytest.approx(value(first, images)) and pair.second == pytest.approx(value(second, images))


def test_masks_agree_with_drawing_the_images_themselves(found: tuple) -> None:
    first, second, pairs = found
    gains = [
        np.mean([second["seg"][i][0, 0] - first["seg"][i][0, 0] for i in drawn])
        for drawn in drawn_images(list(first["seg"]))
    ]
    pair = pairs["seg/dice"]
    assert (pair.low, pair.high) == pytest.approx(np.percentile(gains, [2.5, 97.5]), abs=1e-12)


def test_hausdorff_distances_are_compared_where_both_files_have_them(found: tuple, tmp_path: Path) -> None:
    first, second, pairs = found
    index = FIELDS.index("hd95")
    gains = [
        np.mean([second["seg"][i][index, 0] - first["seg"][i][index, 0] for i in drawn])
        for drawn in drawn_images(list(first["seg"]))
    ]
    pair = pairs["seg/hd95"]
    assert (pair.low, pair.high) == pytest.approx(np.percentile(gains, [2.5, 97.5]), abs=1e-12)
    for table in second["seg"].values():
        table[index] = np.nan  # TEST.HAUSDORFF False
    files = [read_scores(write(tmp_path / f"{i}.npz", rows)) for i, rows in enumerate((first, second))]
    assert not any("hd95" in name for name in paired_differences(*files, draws=5, seed=0))


def test_without_resamples_there_are_differences_but_no_intervals(tmp_path: Path) -> None:
    files = [read_scores(write(tmp_path / f"{i}.npz", rows_of(i))) for i in (1, 2)]
    pair = paired_differences(*files, draws=0, seed=0)["cls/auroc"]
    assert pair.difference != 0 and pair.interval is None and np.isnan(pair.better)


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    arrays = read_scores(write(tmp_path / "a.npz", rows_of(1)))
    for pair in paired_differences(arrays, arrays, draws=20, seed=0).values():
        assert np.isnan(pair.first) or pair.difference == 0
        assert np.isnan(pair.low) or (pair.low, pair.high, pair.better) == (0, 0, 0)


def test_only_tasks_of_both_and_only_the_same_images(tmp_path: Path) -> None:
    whole = read_scores(write(tmp_path / "a.npz", rows_of(1)))
    part = read_scores(write(tmp_path / "b.npz", rows_of(2), tasks=("loc",)))
    assert {key.split("/")[0] for key in paired_differences(whole, part, draws=5, seed=0)} == {"loc"}
    unlabelled = [read_scores(write(tmp_path / f"{i}.npz", rows_of(i) | {"cls": {}})) for i in (1, 2)]
    assert {key.split("/")[0] for key in paired_differences(*unlabelled, draws=5, seed=0)} == {"loc", "seg"}
    others = read_scores(write(tmp_path / "c.npz", rows_of(2), patients=PATIENTS[::-1]))
    with pytest.raises(FXError, match="patient_id differ"):
        paired_differences(whole, others, draws=5, seed=0)
    other_truth = rows_of(2)
    other_truth["cls"][7][1][0] = 1 - other_truth["cls"][7][1][0]
    relabelled = read_scores(write(tmp_path / "d.npz", other_truth))
    with pytest.raises(FXError, match="cls_labels differ"):
        paired_differences(whole, relabelled, draws=5, seed=0)
