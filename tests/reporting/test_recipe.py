from __future__ import annotations

from typing import Any

import pytest

from fx_d2.config import PAPER_STRATEGY
from fx_d2.data.table import BY_NAME
from fx_d2.engine.schedule import PhaseSchedule, build_cycle
from fx_d2.reporting.recipe import Recipe


def settings(train: list[str], strategy: list[dict[str, Any]] = PAPER_STRATEGY, **model: Any) -> dict[str, Any]:
    return {"SEED": 3, "DATASETS": {"TRAIN": train}, "MODEL": model, "SCHEDULE": {"STRATEGY": strategy}}


LOC_HEAD = [{"task": "loc", "share": 1.0, "train": ["loc_decoders"]}]
TEACHER = {"ENABLED": True, "CONSISTENCY": 0.5}


def test_slots_are_tasks_that_the_strategy_and_the_dataset_have() -> None:
    recipe = Recipe.from_settings(settings(["chexpert_train", "siim_acr_train"], TEACHER=TEACHER), {})
    assert recipe.slots == (("chexpert", "cls"), ("siim_acr", "cls"), ("siim_acr", "loc"), ("siim_acr", "seg"))
    assert (
        recipe.teacher and not recipe.single and not recipe.heads_only and recipe.datasets == ("chexpert", "siim_acr")
    )
    assert recipe.passes == 6  # cls; cls, loc locked and released, seg likewise
    assert recipe.describe() == "2 datasets, 4 dataset-task pairs, with teacher, from random"
    one = Recipe.from_settings(settings(["siim_acr_train"]), {})
    assert one.describe() == "siim_acr, 3 dataset-task pairs, no teacher, from random"
    own = Recipe.from_settings(settings(["own_train"]), {"own": ["seg"]})
    assert own.slots == (("own", "seg"),) and own.single


def test_a_config_may_use_some_tasks_and_rows_some_datasets() -> None:
    some = settings(["siim_acr_train", "node21_train"])
    some["DATASETS"]["TASKS"] = ["cls", "loc"]
    some["SCHEDULE"]["STRATEGY"] = [
        row | {"datasets": ["node21"]} if row["task"] == "loc" else row for row in PAPER_STRATEGY
    ]
    assert Recipe.from_settings(some, {}).slots == (("siim_acr", "cls"), ("node21", "cls"), ("node21", "loc"))


def test_a_cycle_has_as_many_passes_as_the_schedule() -> None:
    strategy = [row | {"passes": 2} if row["task"] == "cls" else row for row in PAPER_STRATEGY]
    some = settings(["siim_acr_train", "node21_train"], strategy)
    some["SCHEDULE"]["REPEAT"] = {"node21": 3}
    phases = build_cycle([BY_NAME["siim_acr"], BY_NAME["node21"]], strategy)
    schedule = PhaseSchedule(phases, [1] * len(phases), 1, repeat={"node21": 3})
    assert Recipe.from_settings(some, {}).passes == len(schedule.phases) == 6 + 3 * 4


def test_heads_only_and_few_images() -> None:
    heads = Recipe.from_settings(settings(["vindr_local_train"], LOC_HEAD), {})
    assert heads.heads_only and not heads.single and heads.images == 0 and heads.seed == 3
    few = settings(["jsrt_train"])
    few["DATASETS"]["FEW_SHOT"] = {"IMAGES": 6, "SEED": 8}
    assert (Recipe.from_settings(few, {}).images, Recipe.from_settings(few, {}).seed) == (6, 8)
    assert "6 training images" in Recipe.from_settings(few, {}).describe()


@pytest.mark.parametrize(
    ("model", "start"),
    [
        ({}, "random"),
        ({"TIMM": {"KWARGS": {"pretrained": True}}}, "ImageNet"),
        ({"WEIGHTS": "weights/ark6_swin_base.pth"}, "ark6_swin_base"),
        ({"WEIGHTS": "output/fx/model_final.pth"}, "fx"),
        ({"WEIGHTS": "output/fx/model_final.pth", "WEIGHTS_FROM": "teacher"}, "fx (teacher)"),
    ],
)
def test_where_a_run_started(model: dict[str, Any], start: str) -> None:
    assert Recipe.from_settings(settings(["jsrt_train"], **model), {}).start == start


def test_a_method_is_all_but_seeds_places_and_evaluation() -> None:
    first, second = settings(["jsrt_train"]), settings(["jsrt_train"])
    second |= {"SEED": 4, "OUTPUT_DIR": "elsewhere", "TEST": {"BOOTSTRAP": 5}}
    assert Recipe.from_settings(first, {}).method == Recipe.from_settings(second, {}).method
    second["SOLVER"] = {"BASE_LR": 1.0}
    assert Recipe.from_settings(first, {}).method != Recipe.from_settings(second, {}).method


def test_an_empty_config_is_an_unknown_training() -> None:
    assert Recipe.from_settings({}, {}).describe() == "unknown training"
