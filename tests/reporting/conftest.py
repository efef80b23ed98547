"""Folders as trainings and evaluations leave them, with numbers of one's choice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fx_d2.evaluation import build_evaluators
from fx_d2.evaluation.image_scores import write_scores
from fx_d2.evaluation.report import FORMAT, VERSION
from fx_d2.evaluation.subgroups import ImageInfo
from fx_d2.structures import TASK_COMPONENTS, DatasetSpec

MakeRun = Callable[..., Path]


def _config(datasets: tuple[str, ...], tasks: tuple[str, ...], **facts: Any) -> dict[str, Any]:
    first = -1 if facts.get("heads") else 0
    train = {task: list(TASK_COMPONENTS[task][first:]) for task in tasks}
    few = {"FEW_SHOT": {"IMAGES": facts["images"], "SEED": facts.get("draw", 0)}} if facts.get("images") else {}
    return {
        "SEED": facts.get("seed", 0),
        "OUTPUT_DIR": facts["folder"],
        "DATASETS": {"TRAIN": [f"{name}_train" for name in datasets], "ROOT": facts.get("root", "")} | few,
        "MODEL": {
            "WEIGHTS": facts.get("weights", ""),
            "TEACHER": {"ENABLED": facts.get("teacher", False), "CONSISTENCY": 0.5},
        },
        "SCHEDULE": {"STRATEGY": [{"task": task, "share": 1.0, "train": train[task]} for task in tasks]},
        "SOLVER": {"BASE_LR": facts.get("lr", 1e-4)},
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Function that writes a run's folder tmp_path/<name> and returns it.

    Arguments: name; datasets and tasks that it trained; metrics "<model>/<dataset>/<task>/<metric>" -> share or None;
    intervals; split of the evaluation; hashes split -> text; history and steps, lines of the two logs; scores, what
    `write_scores` takes, {"<model>/<dataset>": (spec, images, arrays)}; more, other keys of results.json; and facts of
    the config: seed, weights, teacher, heads, images, draw, lr, root, classes (of the evaluation).
    """

    def make(
        name: str,
        datasets: tuple[str, ...],
        tasks: tuple[str, ...],
        metrics: Mapping[str, float | None] | None = None,
        *,
        intervals: Mapping[str, list[float]] | None = None,
        split: str = "test",
        hashes: Mapping[str, str] | None = None,
        history: list[dict[str, Any]] | None = None,
        steps: list[dict[str, Any]] | None = None,
        scores: Mapping[str, tuple] | None = None,
        more: Mapping[str, Any] | None = None,
        **facts: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(_config(datasets, tasks, folder=str(folder), **facts)))
        for file, lines in (("evaluations.jsonl", history), ("metrics.json", steps or [])):
            if lines is not None:
                (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        if metrics is None:
            return folder
        splits = [f"{row}_{split}" for row in dict.fromkeys(key.split("/")[1] for key in metrics)]
        files = {}
        for key, (spec, images, arrays) in (scores or {}).items():
            files[key] = f"inference/scores_{key.replace('/', '_')}_{split}.npz"
            write_scores(folder / files[key], spec, images, arrays)
        known = {name: {"content_hash": f"sha256:{(hashes or {}).get(name, name)}"} for name in splits}
        meta = {"splits": splits, "datasets": known, "weights": "", "weights_hash": {"student": f"sha256:{name}"}}
        config = yaml.safe_dump({"DATASETS": {"CLASSES": facts.get("classes", [])}})
        content = {
            "format": FORMAT,
            "version": VERSION,
            "meta": meta | {"config": config, "time": "2026-01-02T03:04:05"},
        }
        content |= {"metrics": metrics, "intervals": intervals or {}, "details": {}, "subgroups": {}, "scores": files}
        (folder / "results.json").write_text(json.dumps(content | dict(more or {})))
        return folder

    return make


FILMS = DatasetSpec(
    name="films", title="Films", cls_classes=("a", "b"), loc_classes=("nodule",), seg_classes=("lung", "heart")
)


def film_arrays(seed: int, count: int = 12) -> tuple[DatasetSpec, dict[int, ImageInfo], dict[str, np.ndarray]]:
    """Arguments of `write_scores` for random classification scores of FILMS; the labels do not depend on the seed."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(99)
    images = {i: ImageInfo(f"film{i}.png", f"p{i // 2}", "F", "60", "PA") for i in range(1, count + 1)}
    rows = {i: (rng.random(2).astype(np.float32), truth.integers(0, 2, 2).astype(np.float32)) for i in images}
    evaluator = build_evaluators(FILMS, ["cls"])[0]
    return FILMS, images, evaluator.arrays(rows, list(images))
