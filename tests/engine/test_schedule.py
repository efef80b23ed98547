from collections import Counter
from collections.abc import Callable
from itertools import groupby

import pytest
from detectron2.config import CfgNode
from hypothesis import given
from hypothesis import strategies as st

from fx_d2.config import PAPER_STRATEGY
from fx_d2.data import PRETRAINING, PassBatchSampler
from fx_d2.engine.schedule import PhaseSchedule, build_cycle, build_schedule, check_schedule, spread_visits
from fx_d2.structures import DatasetSpec, FXError, Phase


def test_eleven_rows_give_20_slots_and_29_passes() -> None:
    cycle = build_cycle(PRETRAINING, PAPER_STRATEGY)
    assert len(cycle) == 29
    assert len({(p.dataset, p.task) for p in cycle}) == 20
    # All tasks of a dataset, then the next dataset.
    assert [name for name, _ in groupby(p.dataset for p in cycle)] == [spec.name for spec in PRETRAINING]
    assert sum(p.share for p in cycle) == 24.5  # recipe-reference, section 1: dataset-equivalents of one cycle


def test_a_dataset_with_three_tasks_gets_the_papers_five_passes() -> None:
    passes = [p for p in build_cycle(PRETRAINING, PAPER_STRATEGY) if p.dataset == "candid_ptx"]
    assert [(p.task, p.mode, p.share) for p in passes] == [
        ("cls", "release", 1.0),
        ("loc", "lock", 0.5),
        ("loc", "release", 1.0),
        ("seg", "lock", 0.5),
        ("seg", "release", 1.0),
    ]
    assert passes[1].trainable == ("loc_decoders",) and passes[1].frozen == ("backbone", "loc_encoder")
    assert passes[3].trainable == ("seg_heads",) and passes[3].frozen == ("backbone", "seg_decoder")


def test_other_strategies_are_other_values() -> None:
    single = [{"task": "loc", "share": 1.0, "train": ["backbone", "loc_encoder", "loc_decoders"]}]
    assert {p.mode for p in build_cycle(PRETRAINING, single)} == {"release"}
    locked = [{"task": "cls", "share": 0.5, "train": ["cls_heads"]}]
    assert {p.mode for p in build_cycle(PRETRAINING, locked)} == {"lock"}


@pytest.mark.parametrize(
    "row",
    [
        {"task": "cls", "share": 1.0},
        {"task": "depth", "share": 1.0, "train": ["backbone"]},
        {"task": "cls", "share": 1.0, "train": ["loc_encoder"]},
        {"task": "cls", "share": 1.0, "train": []},
        {"task": "cls", "share": 0.0, "train": ["backbone"]},
        {"task": "cls", "share": 1.5, "train": ["backbone"]},
        {"task": "cls", "share": True, "train": ["backbone"]},
        {"task": "cls", "share": 1.0, "train": "backbone"},
        {"task": "cls", "share": 1.0, "train": ["backbone", "backbone"]},
        {"task": "cls", "share": 1.0, "train": ["backbone"], "repeat": 2},
        {"task": "cls", "share": 1.0, "train": ["backbone"], "passes": 0},
        {"task": "cls", "share": 1.0, "train": ["backbone"], "passes": 1.5},
        {"task": "cls", "share": 1.0, "train": ["backbone"], "steps": -1},
        {"task": "cls", "share": 1.0, "train": ["backbone"], "datasets": "chexpert"},
        {"task": "cls", "share": 1.0, "train": ["backbone"], "datasets": ["chexpertt"]},
        {"task": "seg", "share": 1.0, "train": ["backbone"], "datasets": ["chexpert"]},
        {"task": "cls", "share": 1.0, "train": 3},
        {"task": "cls", "share": 1.0, "train": [["backbone"]]},
        {"task": ["cls"], "share": 1.0, "train": ["backbone"]},
        {"task": "cls", "share": 1.0, "train": ["backbone"], "datasets": 5},
        ["cls", 1.0, ["backbone"]],
    ],
)
def test_a_wrong_row_is_named(row: object) -> None:
    with pytest.raises(FXError, match="SCHEDULE.STRATEGY"):
        build_cycle(PRETRAINING, [row])


def test_a_strategy_that_fits_no_dataset_is_refused() -> None:
    only_labels = DatasetSpec(name="x", title="x", cls_classes=("a",))
    with pytest.raises(FXError, match="no task"):
        build_cycle([only_labels], [{"task": "seg", "share": 1.0, "train": ["seg_heads"]}])


def test_state_of_an_iteration_is_pure_and_complete() -> None:
    phases = [Phase("a", "cls", ("backbone", "cls_heads")), Phase("a", "loc", ("loc_decoders",), 0.5)]
    schedule = PhaseSchedule(phases, [2, 3], cycles=2)
    assert schedule.cycle_length == 5 and schedule.total == 10
    seen = [schedule.at(i) for i in range(10)]
    places = [(s.cycle, s.pass_index, s.step) for s in seen[:6]]
    assert places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, 2), (1, 0, 0)]
    assert [s.last for s in seen[:5]] == [False, True, False, False, True]
    assert schedule.at(7) == seen[7]
    with pytest.raises(ValueError, match="at least one"):
        PhaseSchedule(phases, [2, 0], cycles=1)


def test_rows_repeat_are_capped_and_are_for_some_datasets() -> None:
    seg = ["seg_decoder", "seg_heads"]
    rows = [
        {"task": "seg", "share": 0.5, "train": seg, "passes": 3, "steps": 7},
        {"task": "loc", "share": 1, "train": ["loc_decoders"], "datasets": ["siim_acr", "node21"]},
    ]
    cycle = build_cycle(PRETRAINING, rows)
    three = [Phase(name, "seg", tuple(seg), 0.5, 7) for name in ("candid_ptx", "chestx_det", "siim_acr") for _ in "abc"]
    loc = [Phase(name, "loc", ("loc_decoders",)) for name in ("node21", "siim_acr")]
    assert list(cycle) == [loc[0], *three, loc[1]]


names = st.lists(st.sampled_from("abcdefghijk"), min_size=1, unique=True)
repeats = st.dictionaries(st.sampled_from("abcdefghijk"), st.integers(1, 5))


@given(names, repeats)
def test_visits_are_spread_evenly_and_keep_their_order(datasets: list[str], repeat: dict[str, int]) -> None:
    visits = spread_visits(datasets, repeat)
    assert Counter(visits) == {name: repeat.get(name, 1) for name in datasets}
    assert list(dict.fromkeys(visits)) == sorted(datasets, key=visits.index)
    once = [name for name in visits if repeat.get(name, 1) == 1]
    assert once == [name for name in datasets if repeat.get(name, 1) == 1]
    for name in datasets:  # between two visits of one dataset another one comes at most once more than between others
        places = [i for i, visit in enumerate(visits) if visit == name]
        gaps = [(b - a) % len(visits) for a, b in zip(places, places[1:] + places[:1], strict=True)]
        if len(gaps) > 1:
            assert max(gaps) - min(gaps) <= len(datasets)


def test_two_visits_are_half_a_cycle_apart() -> None:
    assert spread_visits("abcd", {}) == list("abcd")
    assert spread_visits("abcd", {"a": 2}) == list("abacd")
    assert spread_visits("abcd", {"c": 2, "d": 2}) == list("abcdcd")


def _schedule(cycles: int = 3, **settings: object) -> PhaseSchedule:
    phases = [Phase(name, task, ("backbone",)) for name in "abcde" for task in ("cls", "loc")]
    return PhaseSchedule(phases, range(1, 11), cycles, **settings)


@given(st.integers(0, 2**31), st.integers(0, 50), st.dictionaries(st.sampled_from("abcde"), st.integers(1, 4)))
def test_shuffled_cycles_hold_the_same_passes_as_a_pure_function(seed: int, cycle: int, repeat: dict) -> None:
    one, other = (_schedule(repeat=repeat, shuffle=seed) for _ in range(2))
    listed = _schedule(repeat=repeat)
    assert one.cycle_length == listed.cycle_length == other.cycle_length
    start = cycle * one.cycle_length
    forward = [one.at(i) for i in range(start, start + one.cycle_length)]
    backward = [other.at(i) for i in reversed(range(start, start + one.cycle_length))][::-1]
    assert forward == backward  # in whatever order it is asked, as a resumed run does
    assert {s.cycle for s in forward} == {cycle}
    ran = [(s.phase, s.steps) for s in forward if s.first]
    assert Counter(ran) == Counter(zip(listed.phases, listed.steps, strict=True))
    assert [s.pass_index for s in forward if s.last] == list(range(len(ran)))
    tasks = [phase.task for phase, _ in ran]  # the passes of a visit stay together and in order
    assert tasks == ["cls", "loc"] * (len(ran) // 2)
    assert all(a.dataset == b.dataset for (a, _), (b, _) in zip(ran[::2], ran[1::2], strict=True))
    resumed = _schedule(repeat=repeat, shuffle=seed + 1)
    resumed.take_seed(seed)
    assert resumed.phases == one.phases and resumed.cycle(cycle) == one.cycle(cycle)
    one = _schedule(repeat=repeat)
    one.take_seed(seed)
    assert one.cycle(cycle) == listed.cycle(cycle)


def test_orders_differ_between_cycles_and_seeds() -> None:
    orders = {_schedule(shuffle=seed).cycle(cycle).phases for seed in range(3) for cycle in range(3)}
    assert len(orders) == 9
    assert _schedule().cycle(0) == _schedule().cycle(7)


def test_passes_of_repeated_visits_draw_other_images() -> None:
    schedule = PhaseSchedule([Phase("a", "cls", ("backbone",), 0.5)], [1], 2, repeat={"a": 3})
    sampler = PassBatchSampler(
        schedule=schedule, sizes={("a", "cls"): 1000}, batch_sizes={"cls": 8}, seed=0, start_iter=0, num_iters=6
    )
    drawn = [tuple(key.image for key in batch) for batch in sampler]
    assert schedule.cycle_length == 3 and len(set(drawn)) == 6


MakeCfg = Callable[..., CfgNode]
SIZES = {("alpha", "cls"): 10, ("alpha", "loc"): 10, ("alpha", "seg"): 8, ("beta", "cls"): 11}


def _changed(cfg: CfgNode, **values: object) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in values.items():
        cfg.SCHEDULE[key] = CfgNode(value) if isinstance(value, dict) else value
    return cfg


def test_order_and_repetition_come_from_the_config(make_cfg: MakeCfg) -> None:
    def visits(**values: object) -> list[str]:
        phases = build_schedule(_changed(make_cfg(), **values), SIZES, seed=3).phases
        return list(dict.fromkeys(p.dataset for p in phases))

    assert visits() == ["alpha", "beta"]
    assert visits(ORDER="largest_first") == ["beta", "alpha"]
    assert visits(ORDER="smallest_first") == ["alpha", "beta"]
    twice = build_schedule(_changed(make_cfg(), REPEAT={"beta": 2}), SIZES)
    assert [p.dataset for p in twice.phases] == ["alpha"] * 5 + ["beta", "beta"]
    shuffled = build_schedule(_changed(make_cfg(), ORDER="shuffled"), SIZES, seed=3)
    assert len({shuffled.cycle(n).phases for n in range(9)}) == 2


def test_the_smaller_cap_counts(make_cfg: MakeCfg) -> None:
    rows = [{"task": "cls", "share": 1.0, "train": ["cls_heads"], "steps": 2}]
    assert build_schedule(_changed(make_cfg(), STRATEGY=rows), SIZES).steps == (2, 2)
    assert build_schedule(_changed(make_cfg(), STRATEGY=rows, ITERS_PER_PASS=1), SIZES).steps == (1, 1)
    with pytest.raises(FXError, match="alpha: no training image is annotated for 'loc'"):
        build_schedule(make_cfg(), SIZES | {("alpha", "loc"): 0})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ORDER", "random", r"SCHEDULE\.ORDER is 'random'.*shuffled"),
        ("REPEAT", {"gamma": 2}, r"SCHEDULE\.REPEAT.*'gamma' is not a dataset of .*; these are alpha, beta"),
        ("REPEAT", {"alpha": 0}, r"SCHEDULE\.REPEAT.*1 or more"),
        ("REPEAT", {"alpha": 1.5}, r"SCHEDULE\.REPEAT.*whole number"),
        ("CYCLES", 0, r"SCHEDULE\.CYCLES"),
        ("ITERS_PER_PASS", -1, r"SCHEDULE\.ITERS_PER_PASS"),
        ("STRATEGY", [{"task": "cls"}], r"SCHEDULE\.STRATEGY"),
    ],
)
def test_a_wrong_setting_is_named(make_cfg: MakeCfg, key: str, value: object, message: str) -> None:
    with pytest.raises(FXError, match=message):
        check_schedule(_changed(make_cfg(), **{key: value}))


def test_that_there_is_no_dataset_is_not_the_schedule_s_to_say(make_cfg: MakeCfg) -> None:
    """But the loader's."""
    check_schedule(make_cfg("DATASETS.TRAIN", "()"))
