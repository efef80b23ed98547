"""Group norm of one image."""

import pytest
import torch
from torch import nn

from fx_d2.layers.group_norm import GroupNorm


def test_it_is_the_norm_of_torch() -> None:
    ours, theirs, x = GroupNorm(4, 8), nn.GroupNorm(4, 8), torch.randn(3, 8, 5, 6)
    assert torch.equal(ours(x), theirs(x)) and isinstance(ours, nn.GroupNorm)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_a_single_image_is_treated_as_one_of_two() -> None:
    norm, x = GroupNorm(4, 4), torch.randn(2, 4, 1, 1, requires_grad=True)
    nn.init.normal_(norm.bias)
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.GroupNorm(4, 4)(x[:1])
    assert torch.equal(norm(x[:1]), norm(x)[:1]) and torch.allclose(norm(x[:1]).flatten(), norm.bias, atol=1e-4)
    norm(x[:1]).sum().backward()
    assert torch.isfinite(x.grad).all()
