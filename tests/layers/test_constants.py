"""Tensors that are computed once."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fx_d2.layers.constants import KEPT, constant

CPU = torch.device("cpu")


@pytest.fixture
def calls() -> list[int]:
    """The sizes that were computed."""
    return []


@pytest.fixture
def ramp(calls: list[int]) -> Callable[..., tuple[Tensor]]:
    @constant
    def compute(size: int, device: torch.device) -> tuple[Tensor]:
        calls.append(size)
        return (torch.arange(size, dtype=torch.float32, device=device),)

    return compute


def test_a_tensor_is_computed_once(ramp: Callable[..., tuple[Tensor]], calls: list[int]) -> None:
    assert ramp(3, CPU)[0] is ramp(3, CPU)[0] and ramp(3, CPU)[0].tolist() == [0, 1, 2]
    assert ramp(4, CPU)[0].tolist() == [0, 1, 2, 3] and ramp(3, torch.device("meta"))[0].is_meta
    assert calls == [3, 4, 3]


def test_only_the_last_are_kept(ramp: Callable[..., tuple[Tensor]], calls: list[int]) -> None:
    for size in range(KEPT + 1):
        ramp(size, CPU)
        ramp(0, CPU)  # used all the time, so never dropped
    assert calls == list(range(KEPT + 1))
    ramp(1, CPU)
    assert calls == [*range(KEPT + 1), 1]


@pytest.mark.parametrize("when", [1, 2, 3])
def test_threads_may_drop_each_other_s_results(ramp: Callable[..., tuple[Tensor]], when: int) -> None:
    """At one of the look-ups, each of which hashes the key, "another thread" fills the cache with other results."""
    hashes = 0

    class Size(int):
        def __hash__(self) -> int:
            nonlocal hashes
            hashes += 1
            if hashes == when:
                for size in range(10, 11 + KEPT):
                    ramp(size, CPU)
            return super().__hash__()

    ramp(3, CPU)
    assert ramp(Size(3), CPU)[0].tolist() == [0, 1, 2]


def test_what_inference_computed_can_be_trained_with(ramp: Callable[..., tuple[Tensor]]) -> None:
    with torch.inference_mode():
        ramp(3, CPU)
    weight = nn.Parameter(torch.ones(3))
    (weight * ramp(3, CPU)[0]).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [0, 1, 2]


def test_fake_tensors_are_not_kept(ramp: Callable[..., tuple[Tensor]], calls: list[int]) -> None:
    with FakeTensorMode():
        ramp(3, CPU)
    assert type(ramp(3, CPU)[0]) is Tensor and calls == [3, 3]


def test_an_exported_graph_computes_its_own(ramp: Callable[..., tuple[Tensor]], calls: list[int]) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + ramp(x.shape[1], x.device)[0]

    ramp(3, CPU)
    program = torch.export.export(Model(), (torch.zeros(2, 3),))
    assert not program.constants and torch.equal(program.module()(torch.ones(2, 3))[0], torch.tensor([1.0, 2.0, 3.0]))
    assert type(ramp(3, CPU)[0]) is Tensor


def test_copies_and_checkpoints_do_not_hold_them() -> None:
    from fx_d2.modeling.detr.encoder import LocEncoder

    encoder = LocEncoder(in_channels=(4, 8), dim=64, heads=2, points=2, ffn_dim=16, layers=1, temperature=20.0)
    before = set(encoder.state_dict())
    features = [torch.randn(2, 4, 8, 6), torch.randn(2, 8, 4, 3)]
    out = encoder(features, None).tokens
    assert set(encoder.state_dict()) == before
    assert torch.equal(copy.deepcopy(encoder)(features, None).tokens, out)
