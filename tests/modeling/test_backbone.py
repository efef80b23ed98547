"""Trunks of several families, through one wrapper."""

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch.nn import functional as F

from fx_d2.modeling import TimmBackbone
from fx_d2.modeling.backbone import normalize_images
from fx_d2.structures import FXError

SWIN = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
SMALL = {
    "swin_tiny_patch4_window7_224": (SWIN, [1, 2, 3]),
    "convnext_atto": ({"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, [1, 2, 3]),
    "resnet18": ({"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}, [2, 3, 4]),
    "vit_tiny_patch16_224": ({"depth": 4, "embed_dim": 32, "num_heads": 2}, [0, 1, 2]),
    "dla46_c": ({}, [4]),  # knows neither img_size nor drop_path_rate
}


def trunk(
    name: str = "swin_tiny_patch4_window7_224", kwargs: dict[str, Any] | None = None, **other: Any
) -> TimmBackbone:
    torch.manual_seed(0)
    small, stages = SMALL.get(name, ({}, [1, 2, 3]))
    arguments = {"in_chans": 1, "drop_path": 0.0, "grad_checkpointing": False, "size": (64, 96), "loc_stages": stages}
    arguments |= {"fused_attention": False, "frozen_stages": 0}
    return TimmBackbone(name=name, kwargs=small if kwargs is None else kwargs, **(arguments | other))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_stages_have_the_promised_shapes(name: str, channels: int) -> None:
    model = trunk(name, in_chans=channels).eval()
    features = model(torch.rand(2, 1, 64, 96))
    shapes = model.output_shape()
    assert list(features) == list(shapes) == [f"stage{i}" for i in range(len(model.channels))]
    for stage, x in features.items():
        stride = shapes[stage].stride
        assert x.shape == (2, shapes[stage].channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224",
                                  "swin_base_patch4_window7_224", "swin_large_patch4_window7_224"])  # fmt: skip
def test_the_swins_of_the_paper_by_name(name: str) -> None:
    with torch.device("meta"):
        model = trunk(name, {})
    width = {"tiny": 96, "small": 96, "base": 128, "large": 192}[name.split("_")[1]]
    assert model.channels == [width * 2**i for i in range(4)] and model.strides == [4, 8, 16, 32]


def test_a_size_that_no_window_and_no_stage_divides_is_padded_inside() -> None:
    """100 = 4 * 25: odd maps from the first stage on, and windows of 4 that do not tile any of them."""
    model = trunk(size=(100, 68)).eval()
    shapes = [tuple(x.shape[2:]) for x in model(torch.rand(1, 1, 100, 68)).values()]
    assert shapes == [(25, 17), (13, 9), (7, 5), (4, 3)]


def test_a_size_or_channels_that_the_trunk_does_not_take_are_named() -> None:
    with pytest.raises(FXError, match=r"128 x 96 pixels: swin_tiny\w+ was built for \[64, 96\]"):
        trunk()(torch.rand(1, 1, 128, 96))
    assert trunk("convnext_atto")(torch.rand(1, 1, 128, 96))["stage0"].shape[2:] == (32, 24)
    with pytest.raises(FXError, match="IN_CHANS is 2: choose 1, or 3"):
        trunk(in_chans=2)


@pytest.mark.parametrize(("name", "near"), [("swin_tiny_patch4_window7_224", r"\[64, 96\]"),
                                            ("vit_tiny_patch16_224", r"\[64, 96\]"),
                                            ("convnext_atto", r"\[64, 96\]")])  # fmt: skip
def test_a_size_that_the_patch_does_not_divide_is_refused_not_cut(name: str, near: str) -> None:
    with pytest.raises(FXError, match=f"66 x 97 pixels: {name} needs sides .* for example to {near}"):
        trunk(name, size=(66, 97))
    with pytest.raises(FXError, match="65 x 96 pixels"):
        trunk(name)(torch.rand(1, 1, 65, 96))


def test_three_channels_see_the_grey_image_three_times() -> None:
    seen = {}
    model = trunk(in_chans=3).eval()
    model.trunk.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    image = torch.rand(1, 1, 64, 96)
    model(image)
    assert seen["x"].shape == (1, 3, 64, 96) and all(torch.equal(seen["x"][:, c], image[:, 0]) for c in range(3))


def test_channels_last_trunks_are_turned_not_reshaped() -> None:
    """The raw output of timm's Swin is (B, H, W, C)."""
    model, image = trunk().eval(), torch.rand(1, 1, 64, 96)
    raw = model.trunk(image)
    for i, x in enumerate(model(image).values()):
        assert torch.equal(x, raw[i].permute(0, 3, 1, 2))


def test_each_task_reads_through_its_own_norm() -> None:
    model = trunk().eval()
    with torch.no_grad():
        for k, norm in enumerate([model.cls_norm, *model.loc_norms]):
            norm.weight.fill_(k + 2.0)
            norm.bias.fill_(k)
    features = model(torch.rand(2, 1, 64, 96))
    last = features["stage3"]
    mean, var = last.mean(1, keepdim=True), last.var(1, unbiased=False, keepdim=True)
    unit = (last - mean) / (var + 1e-5).sqrt()
    assert torch.allclose(model.pooled(features), (2 * unit).mean((2, 3)), atol=1e-4)
    levels = model.levels(features)
    assert [x.shape[1] for x in levels] == model.channels[1:]
    assert torch.allclose(levels[2], 5 * unit + 3, atol=1e-4)
    assert model.modules_for("cls") == [model.trunk, model.cls_norm]
    assert model.modules_for("loc") == [model.trunk, model.loc_norms] and model.modules_for("seg") == [model.trunk]


def test_checkpointing_changes_memory_not_gradients() -> None:
    plain, saving = trunk(), trunk(grad_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.rand(1, 1, 64, 96)
    for model in (plain, saving):
        model.train()
        sum(x.square().mean() for x in model(image).values()).backward()  # type: ignore[union-attr]
    assert any(getattr(m, "grad_checkpointing", False) for m in saving.modules())
    for (name, a), b in zip(plain.trunk.named_parameters(), saving.trunk.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_checkpointing_that_a_trunk_lacks_is_named() -> None:
    with pytest.raises(FXError, match="GRAD_CHECKPOINTING: hrnet_w18_small does not support it"):
        trunk("hrnet_w18_small", loc_stages=[4], grad_checkpointing=True)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_fused_attention_changes_the_kernel_not_the_result(name: str) -> None:
    plain, fused = trunk(name), trunk(name, fused_attention=True)
    fused.load_state_dict(plain.state_dict())
    image = torch.rand(2, 1, 64, 96)
    with torch.no_grad():
        for a, b in zip(plain.eval()(image).values(), fused.eval()(image).values(), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    flags = [[m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")] for model in (plain, fused)]
    assert flags[0] and not any(flags[0]) and all(flags[1])


def test_a_bias_that_learns_on_a_cpu_is_left_to_timm() -> None:
    """A copy decides for itself, as a teacher does; gradients are those of the fused way."""
    student = trunk(fused_attention=True).eval()
    image, teacher = torch.rand(1, 1, 64, 96), copy.deepcopy(student).requires_grad_(False)
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=AssertionError):
        student(image)["stage3"].sum().backward()
        with pytest.raises(AssertionError):
            teacher(image)
        with pytest.raises(AssertionError), torch.no_grad():
            student(image)
    slopes = [p.grad.clone() for p in student.trunk.parameters()]
    student.zero_grad()
    with mock.patch.object(torch, "is_grad_enabled", return_value=False):
        student(image)["stage3"].sum().backward()
    for slope, p in zip(slopes, student.trunk.parameters(), strict=True):
        assert torch.allclose(slope, p.grad, rtol=1e-4, atol=1e-4)


def learning(model: TimmBackbone) -> set[str]:
    """Names of the trunk's parameters that a released pass of segmentation trains."""
    ids = {id(p) for module in model.modules_for("seg") for p in module.parameters()}
    return {name for name, p in model.trunk.named_parameters() if id(p) in ids}


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("swin_tiny_patch4_window7_224", ("patch_embed.", "layers_0.", "layers_1.")),
        ("convnext_atto", ("stem_0.", "stem_1.", "stages_0.", "stages_1.")),
        ("resnet18", ("conv1.", "bn1.", "layer1.")),
        ("vit_tiny_patch16_224", ("model.cls_token", "model.pos_embed", "model.patch_embed.", "model.blocks.0.",
                                  "model.blocks.1.", "model.blocks.2.")),
        ("efficientnet_b0", ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")),
    ],
)  # fmt: skip
def test_frozen_stages_and_all_before_them_never_learn(name: str, frozen: tuple[str, ...]) -> None:
    stages = {"loc_stages": [4]} if name == "efficientnet_b0" else {}
    model = trunk(name, frozen_stages=2, **stages)
    names = {n for n, _ in model.trunk.named_parameters()}
    still = {n for n in names if n.startswith(frozen)}
    assert still and learning(model) == names - still
    parts = model.modules_for("seg")
    assert not [n for n, m in model.trunk.named_modules() if m in parts and f"{n}.".startswith(frozen)]
    modules = model.modules_for("loc")
    assert model.loc_norms in modules and len({id(p) for m in modules for p in m.parameters()}) == sum(
        len(list(m.parameters())) for m in modules
    ), "a parameter is listed twice"


@pytest.mark.parametrize("number", [4, 5, -1])
def test_the_last_stage_must_learn(number: int) -> None:
    with pytest.raises(FXError, match=f"FROZEN_STAGES is {number}: swin_tiny.* has 4 stages"):
        trunk(frozen_stages=number)


def test_drop_path_only_while_training() -> None:
    model, image = trunk(drop_path=0.9), torch.rand(8, 1, 64, 96)
    outputs = {mode: [model.train(mode)(image)["stage3"] for _ in range(2)] for mode in (True, False)}
    assert torch.equal(*outputs[False]) and not torch.equal(*outputs[True])


def test_built_from_a_config(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.TIMM.IN_CHANS = 1
    tiny_cfg.MODEL.LOC.STAGES = [2, 3]
    tiny_cfg.MODEL.TIMM.FROZEN_STAGES = 1
    model = build_backbone(tiny_cfg)
    assert isinstance(model, TimmBackbone)
    assert model.channels == [16, 32, 64, 128] and model.loc_stages == (2, 3) and model.in_chans == 1
    assert not any(name.startswith("layers_0") for name in learning(model))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("swin_bse_patch4", {}, "MODEL.TIMM.NAME 'swin_bse_patch4' is not a timm model; for example .*'swin_base"),
        ("wsin", {}, "'wsin' is not a timm model; for example .*'swin_"),
        ("swin_tiny_patch4_window7_224", {"embed_size": 3}, "cannot build swin_tiny.*'embed_size'"),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1], "num_heads": [1]}, "cannot build swin_tiny"),
        ("resnet18", {"embed_size": 3}, "cannot build resnet18.*'embed_size'"),
    ],
)
def test_a_trunk_that_cannot_be_built_says_why(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(FXError, match=message) as caught:
        trunk(name, kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stages", [[0, 1], [1, 2, 3, 4], [-1, 3], []])
def test_stages_must_exist_and_hold_the_last(stages: list[int]) -> None:
    with pytest.raises(FXError, match=r"MODEL.LOC.STAGES .* has stages 0 to 3; 3 must be included"):
        trunk(loc_stages=stages)


def test_normalisation() -> None:
    mean, std = torch.tensor([100.0]).view(1, 1, 1), torch.tensor([50.0]).view(1, 1, 1)
    out = normalize_images(torch.tensor([[[0, 100, 255]]], dtype=torch.uint8), mean, std)
    assert out.dtype == torch.float32 and out.flatten().tolist() == pytest.approx([-2.0, 0.0, 3.1])
