import pytest

from fx_d2.config import PAPER_STRATEGY
from fx_d2.data import PRETRAINING
from fx_d2.engine.schedule import PhaseSchedule, build_cycle
from fx_d2.structures import DatasetSpec, FXError, Phase


def test_eleven_rows_give_20_slots_and_29_passes() -> None:
    cycle = build_cycle(PRETRAINING, PAPER_STRATEGY)
    assert len(cycle) == 29
    assert len({(p.dataset, p.task) for p in cycle}) == 20
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
    ],
)
def test_a_wrong_row_is_named(row: dict) -> None:
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
