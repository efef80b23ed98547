"""Position tables of other windows and stems of other channels."""

# timm's interpolation warns about torch's plans for indexing; whether its results are right is tested here.

import pytest
import timm
import torch
from timm.models.swin_transformer import checkpoint_filter_fn

from fx_d2.modeling.convert.fit import fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")

KEY = "backbone.trunk.layers_0.blocks.0.attn.relative_position_bias_table"


def table(window: int, heads: int = 2) -> torch.Tensor:
    torch.manual_seed(window)
    return torch.randn((2 * window - 1) ** 2, heads)


@pytest.mark.parametrize(("old", "new"), [(12, 7), (7, 12), (4, 7)])
def test_tables_of_another_window(old: int, new: int) -> None:
    state = {KEY: table(old)}
    notes = fit(state, {KEY: table(new)})
    assert notes == [f"relative position bias tables interpolated: 1 (window {old} to {new})"]
    assert state[KEY].shape == table(new).shape and state[KEY].dtype == torch.float32
    # Offset (0, 0) is a sampling point of every window: its value stays.
    centre = [(len(t) - 1) // 2 for t in (table(old), table(new))]
    assert torch.allclose(state[KEY][centre[1]], table(old)[centre[0]], atol=1e-5)
    flat = {KEY: torch.full_like(table(old), 0.25)}
    fit(flat, {KEY: table(new)})
    assert torch.allclose(flat[KEY], torch.tensor(0.25), atol=1e-5)
    # A table that grows with the distance still does; far beyond the old window it may stay as it was at its edge.
    side = torch.arange(2 * old - 1.0) - (old - 1)
    steep = {KEY: (side[:, None] ** 2 + side**2).reshape(-1, 1).repeat(1, 2)}
    fit(steep, {KEY: table(new)})
    half = steep[KEY][:, 0].view(2 * new - 1, -1)[new - 1, new - 1 :]
    assert (half.diff() >= 0).all() and half[2] > half[1] > half[0]


def test_tables_are_those_of_timm() -> None:
    small = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    source = timm.create_model("swin_tiny_patch4_window7_224", img_size=224, window_size=7, **small)
    for name, parameter in source.named_parameters():
        if name.endswith("table"):
            torch.nn.init.normal_(parameter)
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=192, window_size=6, **small)
    want = checkpoint_filter_fn(source.state_dict(), model)
    ours = {key: value for key, value in source.state_dict().items() if key.endswith("table")}
    fit(ours, model.state_dict())
    assert len(ours) == 4
    for key, value in ours.items():
        assert torch.equal(value, want[key])


def test_equal_shapes_are_not_touched() -> None:
    state = {KEY: table(7)}
    before = state[KEY]
    assert fit(state, {KEY: table(7)}) == [] and state[KEY] is before


def test_stems_are_summed_for_grey() -> None:
    key = "backbone.trunk.patch_embed.proj.weight"
    weight, grey = torch.randn(8, 3, 4, 4), torch.randn(1, 1, 8, 8)
    state = {key: weight}
    assert fit(state, {key: torch.zeros(8, 1, 4, 4)}) == [
        f"{key} was summed over its three input channels for grey images"
    ]
    conv = torch.nn.functional.conv2d
    assert torch.allclose(conv(grey, state[key]), conv(grey.expand(-1, 3, -1, -1), weight), atol=1e-4)


def test_other_shapes_are_left_to_the_report() -> None:
    state = {KEY: table(7, heads=4), "a.weight": torch.zeros(4, 3, 5, 5), "b.weight": torch.zeros(3, 3)}
    before = dict(state)
    odd = {KEY: table(12), "a.weight": torch.zeros(4, 1, 3, 3), "b.weight": torch.zeros(2, 3)}
    assert fit(state, odd) == []
    assert all(state[key] is before[key] for key in state)
    assert fit({KEY: torch.zeros(35, 2)}, {KEY: table(7)}) == []
