"""Heads of a model that is there, by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.modeling import FoundationX, change_heads
from fx_d2.modeling.heads import build_shared
from fx_d2.structures import DatasetSpec, FXError

NEW = DatasetSpec(name="fresh", title="Fresh", cls_classes=("a", "b"), seg_classes=("c",))
MakeBatch = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def model(tiny_cfg: CfgNode) -> FoundationX:
    torch.manual_seed(0)
    return build_model(tiny_cfg).eval()


def copied(model: FoundationX) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_adding_heads_leaves_every_weight_as_it_was(model: FoundationX, tiny_cfg: CfgNode) -> None:
    before, specs = copied(model), list(model.specs.values())
    change = change_heads(model, tiny_cfg, [*specs, NEW])
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert change.created == ("cls_heads.fresh", "seg_heads.fresh") and change.dropped == ()
    assert set(change.kept) == {"cls_heads.tiny", "cls_heads.tiny_softmax", "loc_decoders.tiny", "seg_heads.tiny",
                                "loc_encoder", "seg_decoder"}  # fmt: skip
    assert set(after) - set(before) == {f"{head}.{kind}" for head in change.created for kind in ("weight", "bias")}
    assert not model.cls_heads["fresh"].training
    assert str(change) == (
        "kept     cls_heads.tiny, cls_heads.tiny_softmax, loc_decoders.tiny, loc_encoder, seg_heads.tiny, seg_decoder\n"
        "created  cls_heads.fresh, seg_heads.fresh\n"
        "dropped  none"
    )


def test_a_changed_model_is_the_model_its_rows_would_build(model: FoundationX, tiny_cfg: CfgNode) -> None:
    specs = [NEW, model.specs["tiny"]]
    change_heads(model, tiny_cfg, specs)
    built = type(model)(tiny_cfg, specs=specs)
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (model, built)]
    assert shapes[0] == shapes[1] and list(model.specs) == ["fresh", "tiny"]


def test_the_shared_part_goes_with_the_last_head_and_comes_with_the_first(
    model: FoundationX, tiny_cfg: CfgNode, make_batch: MakeBatch
) -> None:
    tiny = model.specs["tiny"]
    change = change_heads(model, tiny_cfg, [NEW])
    assert "loc_encoder" in change.dropped and model.loc_encoder is None
    assert "seg_decoder" in change.kept, "fresh has masks: the shared decoder must not be made anew"
    change = change_heads(model, tiny_cfg, [tiny])
    assert set(change.created) == {"cls_heads.tiny", "loc_encoder", "loc_decoders.tiny", "seg_heads.tiny"}
    found = model(make_batch("loc"))
    assert set(found[0]) == {"cls", "instances", "seg", "masks"}


def test_other_classes_under_the_same_name_are_another_head(model: FoundationX, tiny_cfg: CfgNode) -> None:
    """Also when only the order differs: the numbers would mean something else."""
    before, tiny = copied(model), model.specs["tiny"]
    turned = replace(tiny, cls_classes=tiny.cls_classes[::-1])
    change = change_heads(model, tiny_cfg, [turned])
    assert change.created == ("cls_heads.tiny",) and "cls_heads.tiny" in change.dropped
    assert {"loc_decoders.tiny", "seg_heads.tiny"} <= set(change.kept)
    assert not torch.equal(model.cls_heads["tiny"].weight, before["cls_heads.tiny.weight"])


def test_policies_may_change_without_touching_the_head(model: FoundationX, tiny_cfg: CfgNode) -> None:
    changed = replace(model.specs["tiny"], uncertain="ones")
    assert not change_heads(model, tiny_cfg, [changed]).created and model.specs["tiny"].uncertain == "ones"


def test_the_shared_segmentation_decoder_follows_the_config(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.SEG.update({"DIM": 24, "POOL_BINS": [1, 3], "NORM": "", "DROPOUT": 0.3})
    part = build_shared(tiny_cfg, "seg", (8, 16))
    assert (part.fuse.out_channels, part.pooling.bins, part.pooling.dropout.p) == (24, (1, 3), 0.3)
    assert part.fuse.norm is None


@pytest.mark.parametrize("specs", [[], [NEW, NEW]])
def test_none_and_twice_are_refused(model: FoundationX, tiny_cfg: CfgNode, specs: list[DatasetSpec]) -> None:
    before = copied(model)
    with pytest.raises(FXError, match="at least one dataset, each listed once"):
        change_heads(model, tiny_cfg, specs)
    assert set(model.state_dict()) == set(before)
