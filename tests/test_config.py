import pytest
from detectron2.config import CfgNode, get_cfg

from fx_d2.config import PAPER_STRATEGY, add_fx_config
from fx_d2.structures import SHARED_COMPONENTS, TASK_COMPONENTS, TASKS, Phase


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    return cfg


def test_paper_strategy_is_the_papers_table() -> None:
    """The five rows of the table of passes, with lock and release as the paper names them."""
    phases = [Phase("any", row["task"], tuple(row["train"]), row["share"]) for row in PAPER_STRATEGY]
    assert [(p.task, p.mode, p.share) for p in phases] == [
        ("cls", "release", 1.0),
        ("loc", "lock", 0.5),
        ("loc", "release", 1.0),
        ("seg", "lock", 0.5),
        ("seg", "release", 1.0),
    ]
    for phase in phases:
        expected = set(SHARED_COMPONENTS) & set(TASK_COMPONENTS[phase.task]) if phase.mode == "lock" else set()
        assert set(phase.frozen) == expected


def test_every_task_and_component_has_its_keys(cfg: CfgNode) -> None:
    tasks = {task.upper() for task in TASKS}
    assert set(cfg.SCHEDULE.BATCH_SIZE) == set(cfg.SOLVER.CLIP_NORM) == tasks
    assert all(set(cfg.INPUT[task]) == set(cfg.INPUT.CLS) for task in tasks)
    components = {component.upper() for parts in TASK_COMPONENTS.values() for component in parts}
    assert set(cfg.SOLVER.LR_FACTOR) == components


def test_keys_come_twice_to_the_same(cfg: CfgNode) -> None:
    """Adding the keys to two configs shares nothing: a change of one leaves the other and the defaults alone."""
    other = get_cfg()
    add_fx_config(other)
    cfg.merge_from_list(["SCHEDULE.BATCH_SIZE.LOC", "2", "INPUT.CLS.FLIP", "0.0"])
    cfg.SCHEDULE.STRATEGY[0]["share"] = 0.25
    assert (other.SCHEDULE.BATCH_SIZE.LOC, other.INPUT.CLS.FLIP) == (24, 0.5)
    assert PAPER_STRATEGY[0]["share"] == other.SCHEDULE.STRATEGY[0]["share"] == 1.0


def test_dump_reads_back(cfg: CfgNode) -> None:
    assert CfgNode.load_cfg(cfg.dump()).SCHEDULE == cfg.SCHEDULE


def test_misspelt_override_is_refused(cfg: CfgNode) -> None:
    with pytest.raises((KeyError, AssertionError), match="MOMENTUMS"):
        cfg.merge_from_list(["MODEL.TEACHER.MOMENTUMS", "0.9"])
