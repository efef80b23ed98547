"""The arm that benchmarks compare with computes the same losses as fx_d2, in the public code's way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.nn import functional as F

from fx_d2.batch import Batch
from fx_d2.engine import apply_phase, build_cycle
from fx_d2.layers import deformable_attention
from fx_d2.layers.deformable_attention import DeformableAttention
from fx_d2.modeling import FoundationX, localization
from fx_d2.modeling.detr.decoder import DecoderLayer
from fx_d2.modeling.detr.denoising import NoisedQueries, noise_targets
from fx_d2.structures import Phase

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def cfg(tiny_cfg: CfgNode) -> CfgNode:
    """Without drop path, and with denoising queries that repeat the truth: nothing is left to chance."""
    tiny_cfg.MODEL.TIMM.DROP_PATH = 0.0
    tiny_cfg.MODEL.SEG.DROPOUT = 0.0
    tiny_cfg.MODEL.LOC.update({"DN_LABEL_NOISE": 0.0, "DN_BOX_NOISE": 0.0})
    return tiny_cfg


@pytest.fixture
def model(cfg: CfgNode) -> FoundationX:
    """In float64, with box heads that do something."""
    torch.manual_seed(0)
    model = build_model(cfg).double()
    with torch.no_grad():
        for parameter in model.loc_decoders.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


PHASES = {
    f"{phase.task}/{phase.mode}": phase
    for phase in (
        Phase("tiny", "cls", ("backbone", "cls_heads")),
        Phase("tiny", "loc", ("loc_decoders",)),
        Phase("tiny", "loc", ("backbone", "loc_encoder", "loc_decoders")),
        Phase("tiny", "seg", ("backbone", "seg_decoder", "seg_heads")),
    )
}


@pytest.mark.parametrize("kind", PHASES)
def test_losses_are_ours(
    kind: str,
    model: FoundationX,
    make_batch: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the mathematics agree: all but locked segmentation, where the public code leaves batch norms on."""
    from benchmarks import reference_losses
    from benchmarks.reference_style import ReferenceStyle, unfuse

    phase = PHASES[kind]
    batch = make_batch(phase.task, boxes=(3, 1))
    apply_phase(model, phase)
    drawn: list[NoisedQueries] = []
    monkeypatch.setattr(localization, "noise_targets", lambda *a, **k: drawn.append(noise_targets(*a, **k)) or drawn[0])
    packed = Batch.collate(batch)
    if phase.task == "loc":  # the batch's boxes are float32, and so would be the corners that one side makes of them
        packed.tensors["boxes"] = packed.tensors["boxes"].double()
    ours = {key: value.detach() for key, value in model(packed, {}).items()}
    plain = unfuse(copy.deepcopy(model))
    plain.train()
    noise_truth = reference_losses.noise_truth

    def same_noise(*arguments: Any) -> NoisedQueries:
        """Noised boxes are float32 in any model, and their last bits depend on how they were computed."""
        own, other = noise_truth(*arguments), drawn[0]
        assert own.groups == other.groups and own.blocked.equal(other.blocked) and own.real.equal(other.real)
        assert own.labels.equal(other.labels)
        torch.testing.assert_close(own.references, other.references, rtol=1e-5, atol=1e-6)
        return other

    monkeypatch.setattr(reference_losses, "noise_truth", same_noise)
    theirs, _ = ReferenceStyle.losses(plain, batch, phase)
    scale = 1 - model.consistency
    assert {f"loss_{phase.task}_{name}" for name in theirs} == set(ours) and len(drawn) == (phase.task == "loc")
    for name, value in theirs.items():
        expected = float(ours[f"loss_{phase.task}_{name}"])
        assert scale * value.item() == pytest.approx(expected, rel=1e-10), name


def test_nothing_fused_runs(
    cfg: CfgNode, make_batch: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither torch's fused attention nor a sampler of fx_d2 in any of the three forward passes."""
    from benchmarks.reference_style import ReferenceStyle, unfuse

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this is fused")

    reference = ReferenceStyle(cfg)
    decoders = [m for m in reference.model.modules() if isinstance(m, DecoderLayer)]
    samplers = [m for m in reference.model.modules() if isinstance(m, DeformableAttention)]
    assert decoders and len(samplers) > len(decoders) and not any(m.fused_attn for m in _trunk_attention(reference))
    assert {type(m).__name__ for m in decoders} == {"PlainDecoderLayer"}
    assert {type(m).__name__ for m in samplers} == {"PlainDeformableAttention"}
    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    monkeypatch.setattr(deformable_attention, "_sample", refuse)
    for kind in ("loc/lock", "loc/release"):
        reference.enter(PHASES[kind], make_batch("loc"))
        reference.step()
    samplers[0].__class__ = type("Faster", (DeformableAttention,), {})
    with pytest.raises(TypeError, match="Faster has no plain form"):
        unfuse(reference.model)


def _trunk_attention(reference: Any) -> list[Any]:
    found = [m for m in reference.model.backbone.modules() if hasattr(m, "fused_attn")]
    assert found
    return found


def test_a_step_costs_what_is_listed(cfg: CfgNode, make_batch: Callable[..., list[dict[str, Any]]]) -> None:
    """The teacher gets gradients, and a lock leaves frozen parts in training mode with the graph of the encoder."""
    from benchmarks.reference_style import ReferenceStyle

    torch.manual_seed(0)
    reference = ReferenceStyle(cfg)
    before = copy.deepcopy(reference.model.state_dict())
    reference.enter(PHASES["loc/lock"], make_batch("loc"))
    losses = reference.step()
    assert all(value.isfinite() for value in losses.values())
    assert reference.teacher.backbone.cls_norm.weight.grad is None
    assert all(p.grad is not None for p in reference.teacher.loc_encoder.parameters())
    assert any(p.grad is not None for p in reference.teacher.backbone.trunk.parameters())
    assert reference.model.backbone.training and reference.model.loc_encoder.input_proj[0][0].weight.grad is not None
    after = reference.model.state_dict()
    moved = {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])}
    assert "loc_decoders" in moved and "backbone" not in moved
    reference.end_pass()
    assert not torch.equal(
        reference.teacher.loc_decoders["tiny"].class_head.weight, before["loc_decoders.tiny.class_head.weight"]
    )


def test_phases_are_those_of_the_recipe(cfg: CfgNode, model: FoundationX) -> None:
    cycle = build_cycle([model.specs["tiny"]], cfg.SCHEDULE.STRATEGY)
    assert {f"{phase.task}/{phase.mode}" for phase in cycle} == {*PHASES, "seg/lock"}
