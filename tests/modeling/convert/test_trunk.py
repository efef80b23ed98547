"""A Swin in every form gives our trunk the features of the model it came from."""

import re

import pytest
import timm
import torch
from torch import Tensor, nn

from fx_d2.modeling import TimmBackbone
from fx_d2.modeling.convert import convert_state
from fx_d2.modeling.convert.trunk import rename_swin, rename_timm, swin_name

NAME = "swin_tiny_patch4_window7_224"
SMALL = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}


@pytest.fixture
def backbone() -> TimmBackbone:
    return trunk(NAME, SMALL)


def trunk(name: str, kwargs: dict, stages: tuple[int, ...] = (1, 2, 3)) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(
        name=name,
        kwargs=kwargs,
        size=(64, 64),
        in_chans=3,
        drop_path=0.0,
        grad_checkpointing=False,
        fused_attention=False,
        frozen_stages=0,
        loc_stages=stages,
    ).eval()


@pytest.fixture
def original() -> nn.Module:
    """The classifier timm would build, with weights of its own everywhere."""
    torch.manual_seed(1)
    model = timm.create_model(NAME, img_size=64, num_classes=5, **SMALL).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def target(backbone: TimmBackbone) -> dict[str, Tensor]:
    return {f"backbone.{key}": value for key, value in backbone.state_dict().items()}


def load(backbone: TimmBackbone, source: dict[str, Tensor]) -> None:
    """Convert and load, everything but the norms of localization."""
    state = convert_state(source, target(backbone)).state
    missing, unexpected = backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items()}, False)
    assert not unexpected and all(key.startswith("loc_norms") for key in missing)


def merging_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Microsoft and timm 0.6 name it, with the buffers they store."""
    old = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): value
        for key, value in state.items()
    }
    block = "layers.1.blocks.0.attn."
    return old | {f"{block}relative_position_index": torch.zeros(16, 16), "layers.0.blocks.0.attn_mask": torch.ones(2)}


def prefixed(prefix: str, state: dict[str, Tensor], *others: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()} | {other: torch.ones(2) for other in others}


FORMS = {
    "timm": lambda s: s,
    "timm 0.6, Microsoft": merging_last,
    "Ark": lambda s: prefixed("module.", merging_last(s), "module.omni_heads.0.weight", "module.projector.weight"),
    "POPAR": lambda s: prefixed("module.swin_model.", merging_last(s), "module.head.weight", "module.decoder.0.weight"),
    "POPAR, released": lambda s: prefixed("module.backbone.", merging_last(s)),
    "features only": lambda s: {re.sub(r"^layers\.(\d)", r"layers_\1", key): value for key, value in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_features_are_the_originals(backbone: TimmBackbone, original: nn.Module, form: str) -> None:
    images = torch.randn(2, 3, 64, 64)
    load(backbone, FORMS[form](dict(original.state_dict())))
    with torch.no_grad():
        want = original.forward_head(original.forward_features(images), pre_logits=True)
        assert torch.allclose(backbone.pooled(backbone(images)), want, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "window"),
    [("tiny", "7_224"), ("small", "7_224"), ("base", "7_224"), ("base", "12_384"), ("large", "12_384")],
)
def test_swins_of_every_size(name: str, window: str) -> None:
    """On the meta device, into a trunk for grey images of 224 pixels."""
    with torch.device("meta"):
        source = timm.create_model(f"swin_{name}_patch4_window{window}").state_dict()
        ours = TimmBackbone(
            name=f"swin_{name}_patch4_window7_224",
            kwargs={},
            size=(224, 224),
            in_chans=1,
            drop_path=0.2,
            grad_checkpointing=False,
            fused_attention=False,
            frozen_stages=0,
            loc_stages=(1, 2, 3),
        )
    wanted = target(ours)
    result = convert_state(merging_last(source), wanted)
    for key, value in wanted.items():
        if not key.startswith("backbone.loc_norms."):
            assert result.state[key].shape == value.shape, key
    assert len(result.notes) == 1 + (window == "12_384")


def test_heads_are_reported_and_buffers_are_not(backbone: TimmBackbone, original: nn.Module) -> None:
    result = rename_swin(FORMS["Ark"](dict(original.state_dict())), target(backbone))
    assert result is not None and result.layout == "Swin"
    assert "module.projector.weight" in result.unknown and "module.head.fc.weight" in result.unknown
    assert not any("relative_position_index" in key or "attn_mask" in key for key in result.unknown)
    assert len(result.unused) == 2


def test_detectron2s_stage_norms_are_localizations(backbone: TimmBackbone, original: nn.Module) -> None:
    state = {key: value for key, value in merging_last(dict(original.state_dict())).items() if key[:5] != "norm."}
    norms = {f"norm{i}.weight": torch.full((16 * 2**i,), float(i)) for i in range(4)}
    source = prefixed("backbone.bottom_up.", state | norms, "proposal_generator.anchor")
    result = convert_state(source, target(backbone))
    for i in (1, 2, 3):
        assert (result.state[f"backbone.loc_norms.{i - 1}.weight"] == i).all()
    assert "backbone.bottom_up.norm0.weight" in result.unknown and "backbone.cls_norm.weight" not in result.state


def test_a_second_trunk_is_named(backbone: TimmBackbone, original: nn.Module) -> None:
    state = dict(original.state_dict())
    both = prefixed("student.", state) | prefixed("teacher.net.", state)
    result = convert_state(both, target(backbone))
    assert result.notes == ["a second backbone, 'teacher.net.', was ignored"]
    assert "teacher.net.norm.weight" in result.unknown


@pytest.mark.parametrize(
    ("key", "last", "want"),
    [
        ("layers.2.downsample.norm.bias", True, ("backbone.trunk.layers_3.downsample.norm.bias",)),
        ("layers.2.downsample.norm.bias", False, ("backbone.trunk.layers_2.downsample.norm.bias",)),
        ("layers.2.blocks.17.mlp.fc1.weight", True, ("backbone.trunk.layers_2.blocks.17.mlp.fc1.weight",)),
        ("norm.bias", True, ("backbone.cls_norm.bias",)),
        ("norm0.bias", True, None),
        ("layers.0.blocks.1.attn_mask", True, ()),
        ("layers.0.blocks.1.attn.relative_position_index", False, ()),
        ("head.weight", False, None),
    ],
)
def test_names(key: str, last: bool, want: tuple[str, ...] | None) -> None:
    assert swin_name(key, last) == want


def test_any_timm_trunk_by_its_own_names() -> None:
    backbone = trunk("resnet10t", {}, stages=(2, 3, 4))
    original = timm.create_model("resnet10t", num_classes=3)
    result = convert_state(prefixed("module.", dict(original.state_dict())), target(backbone))
    assert result.layout == "timm" and result.unknown == ["module.fc.weight", "module.fc.bias"]
    assert {key for key in target(backbone) if key.startswith("backbone.trunk.")} == set(result.state)
    backbone = trunk("convnext_atto", {})
    original = timm.create_model("convnext_atto", num_classes=3)
    result = convert_state(dict(original.state_dict()), target(backbone))
    assert {key for key in target(backbone) if key.startswith("backbone.trunk.")} == set(result.state)


def test_other_trunks_are_not_taken_for_ours(backbone: TimmBackbone) -> None:
    assert rename_swin({"conv1.weight": torch.ones(1)}, target(backbone)) is None
    assert rename_timm({"conv1.weight": torch.ones(1)}, target(backbone)) is None
    assert (
        rename_swin({"patch_embed.proj.weight": torch.ones(1)}, {"backbone.trunk.conv1.weight": torch.ones(1)}) is None
    )
    result = convert_state({"conv1.weight": torch.ones(1)}, target(backbone))
    assert (result.layout, result.state, result.unknown) == ("unknown", {}, ["conv1.weight"])


def test_the_models_type_decides(backbone: TimmBackbone, original: nn.Module) -> None:
    """POPAR was trained in float64."""
    wide = {key: value.double() for key, value in original.state_dict().items()}
    assert {value.dtype for value in convert_state(wide, target(backbone)).state.values()} == {torch.float32}
