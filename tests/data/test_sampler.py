"""The sampler: full batches, exact resume, independence of the number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fx_d2.data.sampler import PassBatchSampler, SampleKey, check_batch_sizes, images_in_pass, steps_in_pass
from fx_d2.structures import FXError, Phase

SIZES = {("a", "cls"): 10, ("b", "loc"): 3}
BATCHES = {"cls": 4, "loc": 4}


@dataclass(frozen=True)
class _State:
    phase: Phase
    cycle: int
    pass_index: int
    step: int


class _Schedule:
    """Two passes a cycle: three steps of half or all of a, one step of b."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def at(self, iteration: int) -> _State:
        cycle, step = divmod(iteration, 4)
        if step < 3:
            return _State(Phase("a", "cls", ("backbone",), self.share), cycle, 0, step)
        return _State(Phase("b", "loc", ("backbone",)), cycle, 1, 0)


def _batches(
    start: int = 0, count: int = 8, rank: int = 0, world: int = 1, share: float = 1.0, seed: int = 5
) -> list[list[SampleKey]]:
    sampler = PassBatchSampler(
        schedule=_Schedule(share), sizes=SIZES, batch_sizes=BATCHES, seed=seed, start_iter=start, num_iters=count,
        rank=rank, world_size=world,
    )  # fmt: skip
    assert len(sampler) == count
    return list(sampler)


def test_a_pass_sees_every_image_and_fills_the_last_batch_from_its_start() -> None:
    """Ten images in three batches of four."""
    images = [key.image for batch in _batches(count=3) for key in batch]
    assert sorted(images[:10]) == list(range(10)) and images[10:] == images[:2]


def test_fewer_images_than_a_batch() -> None:
    """Three images fill a batch of four, each at least once."""
    keys = _batches()[3]
    assert {key.slot for key in keys} == {("b", "loc")} and len(keys) == 4 and {key.image for key in keys} == {0, 1, 2}


def test_half_is_drawn_afresh_in_each_cycle() -> None:
    """A share of one half repeats five images in a pass and takes others in the next cycle."""
    halves = [{key.image for batch in _batches(start=4 * c, count=3, share=0.5) for key in batch} for c in range(4)]
    assert {len(half) for half in halves} == {5} and len({frozenset(half) for half in halves}) > 1


def test_starting_anywhere_continues_exactly() -> None:
    """Resume needs only the iteration."""
    assert _batches(start=5, count=3) == _batches()[5:]


def test_processes_share_the_batch() -> None:
    """Two processes see together what one sees, in order, seeds included."""
    parts = zip(_batches(rank=0, world=2), _batches(rank=1, world=2), strict=True)
    assert [left + right for left, right in parts] == _batches()


def test_seeds_differ() -> None:
    """No two samples of a run share their randomness."""
    seeds = [key.seed for batch in _batches(count=40) for key in batch]
    assert len(set(seeds)) == len(seeds)


def test_another_seed_is_another_run() -> None:
    """Order of the images and randomness of each sample follow from the run's seed."""
    one, other = ([key for batch in _batches(count=3, seed=seed) for key in batch] for seed in (5, 6))
    assert [key.image for key in one] != [key.image for key in other]
    assert not {key.seed for key in one} & {key.seed for key in other}


def test_counts() -> None:
    """Images and steps of a pass."""
    assert (images_in_pass(10, 0.5), images_in_pass(10, 0.46), images_in_pass(1, 0.1)) == (5, 5, 1)
    assert (steps_in_pass(10, 1.0, 4), steps_in_pass(10, 0.5, 4), steps_in_pass(3, 0.1, 4)) == (3, 2, 1)


def test_batch_must_divide() -> None:
    """Four images over three processes are refused, naming the key, and so is a batch of none."""
    with pytest.raises(FXError, match="SCHEDULE.BATCH_SIZE.CLS is 4"):
        _batches(world=3)
    with pytest.raises(FXError, match="SCHEDULE.BATCH_SIZE.SEG is 0"):
        check_batch_sizes({"cls": 4, "seg": 0}, 1)


def test_an_order_is_drawn_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a step: a draw costs what the dataset has images."""
    drawn, draw = [], PassBatchSampler._draw
    monkeypatch.setattr(PassBatchSampler, "_draw", lambda self, *args: drawn.append(args[0]) or draw(self, *args))
    _batches(count=8)
    assert drawn == [(0, 0), (0, 1), (1, 0), (1, 1)]
