import pytest
import torch

from fx_d2.layers import processes
from fx_d2.layers.processes import (
    Part,
    copy_from_first,
    largest_over_processes,
    part_of_batch,
    shared_count,
    shared_numbers,
)

CPU = torch.device("cpu")


def test_alone_a_count_is_itself_but_never_zero() -> None:
    assert shared_count(torch.tensor(3)) == 3 and shared_count(torch.tensor(0)) == 1
    assert largest_over_processes(4, torch.device("cpu")) == 4


@pytest.mark.parametrize(("mine", "others", "want"), [(2, 5, 3.5), (1, 0, 0.5), (0, 0, 0.5)])
def test_a_shared_count_makes_the_mean_of_two_processes_that_of_all(
    monkeypatch: pytest.MonkeyPatch, mine: int, others: int, want: float
) -> None:
    monkeypatch.setattr(processes.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(others))
    count = torch.tensor(mine)
    assert shared_count(count) == want and count == mine


@pytest.mark.parametrize(("mine", "others"), [((2, 1), (5, 3)), ((1, 1), (0, 1)), ((0, 1), (0, 1)), ((4, 4), (1, 1))])
def test_two_numbers_of_all_in_one_exchange(
    monkeypatch: pytest.MonkeyPatch, mine: tuple[int, int], others: tuple[int, int]
) -> None:
    assert shared_numbers(*mine, CPU) == (max(mine[0], 1), mine[1])

    def gather(rows: list[torch.Tensor], own: torch.Tensor) -> None:
        rows[0].copy_(own)
        rows[1].copy_(torch.tensor(others))

    monkeypatch.setattr(processes.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", gather)
    count, largest = shared_numbers(*mine, CPU)
    assert count == max(mine[0] + others[0], 1) / 2 and count.dtype == torch.float64
    assert largest == max(mine[1], others[1])


def test_the_largest_of_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.comm, "get_world_size", lambda: 2)

    def reduce(value: torch.Tensor, how: torch.distributed.ReduceOp) -> None:
        assert how == torch.distributed.ReduceOp.MAX
        value.clamp_(min=5)

    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    assert largest_over_processes(4, CPU) == 5 and largest_over_processes(6, CPU) == 6


def test_a_part_answers_for_the_whole_and_its_share_of_it() -> None:
    whole = Part(share=0.25, count=torch.tensor(12.0, dtype=torch.float64), largest=7)
    with part_of_batch(whole):
        assert shared_count(torch.tensor(1)) == 3 and largest_over_processes(2, torch.device("cpu")) == 7
        with part_of_batch(None):
            assert shared_count(torch.tensor(1)) == 1
        assert shared_count(torch.tensor(1)) == 3
    assert shared_count(torch.tensor(1)) == 1 and largest_over_processes(2, torch.device("cpu")) == 2


def test_a_failed_part_leaves_no_trace() -> None:
    with pytest.raises(RuntimeError), part_of_batch(Part(0.5, torch.tensor(4.0), 2)):
        raise RuntimeError
    assert shared_count(torch.tensor(1)) == 1


def test_tensors_of_the_first_process_in_one_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.zeros(2, 3), torch.zeros(()), torch.zeros(4)]
    copy_from_first(tensors)  # alone nothing is sent
    sent: list[tuple[int, int]] = []

    def broadcast(x: torch.Tensor, source: int) -> None:
        sent.append((len(x), source))
        x.copy_(torch.arange(11.0))

    monkeypatch.setattr(processes.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    copy_from_first(tensors)
    assert sent == [(11, 0)]
    assert [x.flatten().tolist() for x in tensors] == [[0, 1, 2, 3, 4, 5], [6], [7, 8, 9, 10]]
    copy_from_first([])
    assert sent == [(11, 0)]
