"""Which image is loaded at which step: a pure function of schedule, seed and iteration.

One sampler covers the whole run, all phases included, so that workers persist and prefetch across phase boundaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from torch.utils.data import Sampler

from fx_d2.structures import FXError, Phase

Slot = tuple[str, str]
"""(dataset, task)."""


class ScheduleState(Protocol):
    """The position of an iteration in the cycle of passes."""

    @property
    def phase(self) -> Phase:
        """The current phase."""

    @property
    def cycle(self) -> int:
        """Index of the cycle, from 0."""

    @property
    def pass_index(self) -> int:
        """Index of the pass within the cycle, from 0."""

    @property
    def step(self) -> int:
        """Step within the pass, from 0."""


class Schedule(Protocol):
    """The interface of the engine's PhaseSchedule that the sampler uses."""

    def at(self, iteration: int) -> ScheduleState:
        """The state of an iteration; must be a pure function."""


class SampleKey(NamedTuple):
    """One training sample: `image` indexes the annotated images of the slot, `seed` seeds the augmentation."""

    slot: Slot
    image: int
    seed: int


def images_in_pass(num_images: int, share: float) -> int:
    """Number of images in a pass over the fraction `share` of a slot's annotated images: rounded, at least one."""
    return max(1, round(num_images * share))


def steps_in_pass(num_images: int, share: float, batch: int) -> int:
    """Number of steps of such a pass with global batch size `batch`; every batch is full."""
    return math.ceil(images_in_pass(num_images, share) / batch)


def check_batch_sizes(batch_sizes: Mapping[str, int], world_size: int) -> None:
    """FXError for a batch size that is not divisible by the world size; the message names the config key."""
    for task, batch in batch_sizes.items():
        if batch < 1 or batch % world_size:
            raise FXError(
                f"SCHEDULE.BATCH_SIZE.{task.upper()} is {batch}: it must be a positive multiple of the "
                f"{world_size} processes"
            )


class PassBatchSampler(Sampler[list[SampleKey]]):
    """Yields one list of SampleKey per iteration, for one rank.

    The images of a pass are a random sample of the fraction `share` of the slot's images, seeded by (seed, cycle,
    pass). Step k takes the k-th batch. The last batch is filled with images from the start of the pass; a pass with
    fewer images than a batch repeats them, reshuffled. Each rank takes a contiguous part of the batch. A sample's seed
    depends on (seed, iteration, position in the global batch), so neither workers nor world size change the data.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        sizes: Mapping[Slot, int],
        batch_sizes: Mapping[str, int],
        seed: int,
        start_iter: int,
        num_iters: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Cover iterations [start_iter, start_iter + num_iters).

        Args:
            schedule: phases by iteration.
            sizes: annotated training images by slot.
            batch_sizes: global batch size by task.
            seed: seed of the run, equal on all ranks, >= 0.
            start_iter: first iteration; a resumed run sees the same samples as an uninterrupted one.
            num_iters: number of iterations.
            rank: rank of this process.
            world_size: number of processes.

        Raises:
            FXError: a batch size that is not divisible by the world size.
        """
        check_batch_sizes(batch_sizes, world_size)
        self._schedule, self._sizes, self._batch_sizes, self._seed = schedule, sizes, batch_sizes, seed
        self._start_iter, self._num_iters = start_iter, num_iters
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Number of iterations."""
        return self._num_iters

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """The batches of this rank, in order."""
        current: tuple[int, int] | None = None
        order = np.empty(0, dtype=np.int64)
        for iteration in range(self._start_iter, self._start_iter + self._num_iters):
            state = self._schedule.at(iteration)
            slot = (state.phase.dataset, state.phase.task)
            if slot not in self._sizes:
                raise FXError(f"the schedule trains {slot[0]!r} for {slot[1]!r}, which DATASETS.TRAIN does not provide")
            batch = self._batch_sizes[slot[1]]
            if current != (state.cycle, state.pass_index):
                current = (state.cycle, state.pass_index)
                order = self._draw(current, self._sizes[slot], state.phase.share, batch)
            places = np.arange(state.step * batch, (state.step + 1) * batch) % len(order)
            seeds = np.random.SeedSequence((self._seed, iteration)).generate_state(batch)
            part = batch // self._world_size
            mine = slice(self._rank * part, (self._rank + 1) * part)
            pairs = zip(order[places[mine]].tolist(), seeds[mine].tolist(), strict=True)
            yield [SampleKey(slot, index, seed) for index, seed in pairs]

    def _draw(self, which: tuple[int, int], num_images: int, share: float, batch: int) -> np.ndarray:
        """The shuffled image indices of a pass, int64, at least one batch long."""
        rng = np.random.default_rng((self._seed, *which))
        chosen = rng.permutation(num_images)[: images_in_pass(num_images, share)]
        parts = [chosen]
        while sum(map(len, parts)) < batch:
            parts.append(rng.permutation(chosen))
        return np.concatenate(parts)[: max(batch, len(chosen))]
