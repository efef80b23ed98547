import pytest
import torch
from torch import nn

from fx_d2.layers.checkpointing import run_layer


class Counted(nn.Module):
    """Linear and dropout; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return nn.functional.dropout(self.linear(x).relu(), 0.5)


@pytest.mark.parametrize(("recompute", "calls"), [(False, 1), (True, 2)])
def test_a_layer_runs_again_in_the_backward_pass_with_the_same_draws(recompute: bool, calls: int) -> None:
    torch.manual_seed(0)
    layer, x = Counted(), torch.randn(64, 4, requires_grad=True)
    torch.manual_seed(1)
    want = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    torch.manual_seed(1)
    layer.calls = 0
    got = torch.autograd.grad(run_layer(layer, recompute, x).square().sum(), [x, *layer.parameters()])
    assert all(map(torch.equal, got, want)) and layer.calls == calls


def test_without_a_graph_it_runs_once() -> None:
    layer = Counted()
    with torch.no_grad():
        assert not run_layer(layer, True, torch.randn(2, 4)).requires_grad
    assert layer.calls == 1
