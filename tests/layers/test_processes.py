import pytest
import torch

from fx_d2.layers import processes
from fx_d2.layers.processes import largest_over_processes, shared_count


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
