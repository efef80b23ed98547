"""Foundation X+: one stack of decoder layers for all datasets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from fx_d2.engine.export import TensorModel, export_program
from fx_d2.engine.lock import apply_phase
from fx_d2.modeling.heads import change_heads
from fx_d2.modeling.meta_arch import FoundationX
from fx_d2.structures import DatasetSpec, Phase

MakeBatch = Callable[..., list[dict]]
STACK = ("layers", "norm", "position_head")


@pytest.fixture
def twins(tiny_spec: DatasetSpec) -> list[DatasetSpec]:
    other = replace(tiny_spec, name="twin")
    MetadataCatalog.pop("twin_train", None)
    MetadataCatalog.get("twin_train").set(spec=other)
    return [tiny_spec, other]


@pytest.fixture
def model(tiny_cfg: CfgNode, twins: list[DatasetSpec]) -> FoundationX:
    torch.manual_seed(0)
    tiny_cfg.MODEL.LOC.SHARED_DECODER = True
    return FoundationX(tiny_cfg, specs=twins)


def test_layers_are_one_and_queries_and_heads_are_two(model: FoundationX) -> None:
    names = list(model.state_dict())
    assert any(name.startswith("loc_encoder.decoder_stack.layers.2.") for name in names)
    for twin in ("tiny", "twin"):
        own = {name.split(".")[2] for name in names if name.startswith(f"loc_decoders.{twin}.")}
        assert not own & set(STACK) and {"memory_proj", "proposal_norm", "query_embed", "class_head"} <= own


def test_it_computes_what_separate_decoders_of_equal_weights_compute(
    model: FoundationX, tiny_cfg: CfgNode, twins: list[DatasetSpec], make_batch: MakeBatch
) -> None:
    tiny_cfg.MODEL.LOC.SHARED_DECODER = False
    separate = FoundationX(tiny_cfg, specs=twins)
    state = separate.state_dict()
    for name, value in model.state_dict().items():
        stack = "loc_encoder.decoder_stack."
        targets = [f"loc_decoders.{twin}.{name.removeprefix(stack)}" for twin in ("tiny", "twin")]
        for target in targets if name.startswith(stack) else [name]:
            state[target] = value
    separate.load_state_dict(state)
    for batch in (make_batch("loc"), make_batch("loc", dataset="twin")):
        with torch.no_grad():
            ours, theirs = model.eval()(batch)[0]["instances"], separate.eval()(batch)[0]["instances"]
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


@pytest.mark.parametrize("locked", [True, False])
def test_the_stack_is_locked_and_released_with_the_encoder(
    model: FoundationX, make_batch: MakeBatch, locked: bool
) -> None:
    """Every parameter that a released pass asks a gradient for gets one, so DDP waits for none; the twin's get none."""
    shared = () if locked else ("backbone", "loc_encoder")
    apply_phase(model, Phase("tiny", "loc", (*shared, "loc_decoders")))
    sum(model(make_batch("loc")).values()).backward()
    stack = [p.grad is not None for p in model.loc_encoder.decoder_stack.parameters()]
    assert all(stack) if not locked else not any(stack)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.loc_decoders["twin"].parameters())


def test_heads_come_and_go_and_the_stack_stays(
    model: FoundationX, tiny_cfg: CfgNode, twins: list[DatasetSpec], make_batch: MakeBatch
) -> None:
    before = {name: value.clone() for name, value in model.loc_encoder.state_dict().items()}
    change = change_heads(model, tiny_cfg, [replace(twins[0], name="new"), twins[1]])
    assert "loc_decoders.new" in change.created and "loc_decoders.tiny" in change.dropped
    assert all(torch.equal(value, before[name]) for name, value in model.loc_encoder.state_dict().items())
    assert "instances" in model.eval()(make_batch("loc", dataset="new"))[0]


def test_it_can_be_exported_with_guided_segmentation(tiny_cfg: CfgNode, twins: list[DatasetSpec]) -> None:
    tiny_cfg.MODEL.LOC.SHARED_DECODER = True
    tiny_cfg.MODEL.SEG.REGION.update({"WEIGHT": 0.5, "SCORE": 0.0})
    model = TensorModel(FoundationX(tiny_cfg, specs=twins).eval(), {"tiny": ("loc", "seg"), "twin": ("seg",)})
    images = torch.rand(3, 1, 64, 64) * 255
    program = export_program(model, (64, 64))
    with torch.no_grad():
        for ours, theirs in zip(program.module()(images), model(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
