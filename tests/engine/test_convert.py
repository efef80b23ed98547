"""What of a file reaches a model, and what the report says about the rest."""

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.engine.convert import build_shapes, compare, convert_source
from fx_d2.engine.weights import Source
from fx_d2.modeling import FoundationX
from fx_d2.structures import FXError


@pytest.fixture
def model(tiny_cfg: CfgNode) -> FoundationX:
    torch.manual_seed(0)
    return build_model(tiny_cfg)


def source(state: dict[str, torch.Tensor], which: str = "student") -> Source:
    return Source("x.pth", {which: state}, (which,), ["teacher's note"])


def swin() -> dict[str, torch.Tensor]:
    small = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    return dict(timm.create_model("swin_tiny_patch4_window7_224", img_size=64, num_classes=2, **small).state_dict())


def test_compare_sorts_names() -> None:
    report = compare(torch.nn.Linear(2, 3), {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)})
    assert report == {"matched": [], "missing": ["bias"], "unexpected": ["extra"], "reshaped": ["weight"]}


def test_a_trunk_fills_the_trunk(model: FoundationX) -> None:
    conversion = convert_source(source(swin()), "student", model)
    own = model.state_dict()
    trunk = [key for key in own if key.startswith(("backbone.trunk.", "backbone.cls_norm."))]
    assert conversion.report["matched"] == trunk == list(conversion.state) and not conversion.complete
    text = conversion.describe()
    assert text.startswith("x.pth: Swin layout, student\n") and "teacher's note" not in text
    row = next(line.split() for line in text.splitlines() if line.startswith("backbone"))
    assert row == ["backbone", str(len(trunk)), "6", "0", "0"]  # three norms of localization are missing
    assert "in the file, but not part of this layout: head.fc.weight, head.fc.bias" in text
    assert "loc_decoders" in text and "such as" in text


def test_a_models_own_names_are_complete(model: FoundationX) -> None:
    conversion = convert_source(source(model.state_dict(), "teacher"), "teacher", model)
    assert conversion.complete and conversion.renamed.layout == "fx_d2" and conversion.renamed.unknown == []
    assert "note: teacher's note" in conversion.describe() and "missing:" not in conversion.describe()


def test_other_shapes_are_reported_and_left_out(model: FoundationX) -> None:
    state = model.state_dict() | {"backbone.cls_norm.weight": torch.zeros(3), "strange": torch.zeros(1)}
    conversion = convert_source(source(state), "student", model)
    assert conversion.report["reshaped"] == ["backbone.cls_norm.weight"]
    assert "backbone.cls_norm.weight" not in conversion.state and not conversion.complete
    assert "reshaped: backbone.cls_norm.weight" in conversion.describe()
    assert "unexpected: strange" in conversion.describe()


def test_nothing_matches(model: FoundationX) -> None:
    with pytest.raises(FXError, match=r"x\.pth matches no weight.*unknown layout, with names such as conv1\.weight"):
        convert_source(source({"conv1.weight": torch.zeros(1)}), "student", model)
    big = timm.create_model("convnext_atto", num_classes=0).state_dict()
    with pytest.raises(FXError, match="matches no weight"):
        convert_source(source(dict(big)), "student", model)


def test_shapes_need_no_memory_and_no_download(tiny_cfg: CfgNode, model: FoundationX) -> None:
    tiny_cfg.MODEL.TIMM.KWARGS.pretrained = True
    tiny_cfg.freeze()
    shapes = build_shapes(tiny_cfg)
    assert {k: v.shape for k, v in shapes.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert all(parameter.is_meta for parameter in shapes.parameters())
    assert tiny_cfg.MODEL.DEVICE == "cpu" and tiny_cfg.MODEL.TIMM.KWARGS.pretrained
