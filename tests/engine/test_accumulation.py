"""A batch in parts has the gradients of the whole."""

import logging
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.nn.parallel import DistributedDataParallel

from fx_d2.batch import Batch
from fx_d2.engine import accumulation, apply_phase
from fx_d2.engine.accumulation import add_gradients, check_parts, part_sizes, split_batch
from fx_d2.layers.processes import Part, part_of_batch
from fx_d2.losses import Targets
from fx_d2.modeling import EMATeacher
from fx_d2.structures import FXError, Phase

CPU = torch.device("cpu")
PHASES = {
    "cls": Phase("tiny", "cls", ("backbone", "cls_heads")),
    "loc": Phase("tiny", "loc", ("backbone", "loc_encoder", "loc_decoders")),
    "loc locked": Phase("tiny", "loc", ("loc_decoders",)),
    "seg": Phase("tiny", "seg", ("backbone", "seg_decoder", "seg_heads")),
}
NO_SCALE = torch.amp.GradScaler("cpu", enabled=False)


@pytest.mark.parametrize(
    ("images", "most", "sizes"),
    [
        (24, 0, [24]),
        (24, 24, [24]),
        (24, 8, [8, 8, 8]),
        (5, 2, [1, 2, 2]),
        (5, 3, [2, 3]),
        (3, 1, [1, 1, 1]),
        (1, 4, [1]),
    ],
)
def test_parts_are_few_and_nearly_equal(images: int, most: int, sizes: list[int]) -> None:
    assert part_sizes(images, most) == sizes


def test_an_undivided_batch_costs_nothing(make_batch: Callable[..., Any]) -> None:
    batch = Batch.collate(make_batch("loc", (1, 2)))
    [(samples, part)] = split_batch(batch, 2, CPU)
    assert samples is batch and part is None


def test_in_several_processes_boxes_are_counted_before_the_forward_pass(
    make_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the losses ask for then is there; nothing else of an undivided batch needs a number on the host."""
    monkeypatch.setattr(accumulation.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(accumulation, "shared_numbers", lambda count, largest, _: (torch.tensor(count / 2), largest))
    batch = Batch.collate(make_batch("loc", (1, 2)))
    [(samples, part)] = split_batch(batch, 0, CPU)
    assert samples.counts == batch.counts and part == Part(1.0, torch.tensor(1.5), 2)
    with part_of_batch(part), mock.patch.object(torch.distributed, "all_reduce", side_effect=AssertionError):
        targets = Targets.of_batch(batch.tensors["classes"], batch.tensors["boxes"], batch.counts)
        assert targets.width == 2 and targets.normalizer() == 1.5
    for task in ("cls", "seg"):
        [(_, part)] = split_batch(Batch.collate(make_batch(task)), 0, CPU)
        assert part is None


def test_parts_know_the_whole(make_batch: Callable[..., Any]) -> None:
    batch = Batch.collate(make_batch("loc", (1, 4, 0, 0, 2)))
    parts = split_batch(batch, 2, CPU)
    assert [x["image_id"] for part, _ in parts for x in part.samples] == [0, 1, 2, 3, 4]
    assert [(part.share, float(part.count), part.largest) for _, part in parts] == [
        (0.2, 7, 4),
        (0.4, 7, 4),
        (0.4, 7, 4),
    ]
    labels = split_batch(Batch.collate(make_batch("cls", (0,) * 4)), 3, CPU)
    assert [float(part.count) for _, part in labels] == [8, 8]  # one of three labels is unknown


def test_processes_exchange_gradients_with_the_last_part_only(make_batch: Callable[..., Any]) -> None:
    weight, kept, seen = torch.ones((), requires_grad=True), [], []
    model = mock.MagicMock(spec=DistributedDataParallel)
    model.no_sync.return_value.__enter__.side_effect = lambda *_: kept.append(1)
    model.no_sync.return_value.__exit__.side_effect = lambda *_: kept.clear()
    parts = split_batch(Batch.collate(make_batch("cls", (0,) * 3)), 1, CPU)
    add_gradients(model, parts, lambda _: seen.append(len(kept)) or {"loss": weight * 3}, NO_SCALE)
    assert seen == [1, 1, 0] and weight.grad == pytest.approx(3)


def _gradients(cfg: CfgNode, samples: list[dict], phase: Phase, most: int) -> dict[str, torch.Tensor]:
    """Of a student and teacher of fixed weights, in float64, and the terms of the loss as "loss_..."."""
    torch.manual_seed(0)
    model = build_model(cfg).double()
    teacher = EMATeacher(model)
    # First weights leave queries tied, so that rounding decides which of them answers for a box.
    with torch.no_grad():
        for parameter in (*model.parameters(), *teacher.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    apply_phase(model, phase)
    parts = split_batch(Batch.collate(samples), most, CPU)
    losses = add_gradients(model, parts, lambda x: model(x, teacher.guide(x, phase)), NO_SCALE)
    assert not any(x.requires_grad for x in losses.values())
    return losses | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("name", ["cls", "loc", "loc locked"])
def test_gradients_and_losses_are_those_of_the_whole(
    tiny_cfg: CfgNode, make_batch: Callable[..., Any], name: str, most: int
) -> None:
    tiny_cfg.MODEL.TIMM.DROP_PATH = 0.0
    tiny_cfg.MODEL.LOC.update({"DN_LABEL_NOISE": 0.0, "DN_BOX_NOISE": 0.0})
    phase = PHASES[name]
    batch = make_batch(phase.task, (2, 0, 0, 3, 1))
    if phase.task == "cls":
        batch[0]["labels"][:] = float("nan")
    whole, parts = (_gradients(tiny_cfg, batch, phase, size) for size in (0, most))
    assert set(whole) == set(parts) and len(whole) > 20
    assert max(float((whole[key] - parts[key]).abs().max()) for key in whole) < 1e-10
    assert max(float(value.abs().max()) for value in whole.values()) > 1e-3


def test_dice_of_parts_is_the_mean_of_their_dice(tiny_cfg: CfgNode, make_batch: Callable[..., Any]) -> None:
    """The one loss that is not a sum over images: three images in parts of one and two."""
    tiny_cfg.MODEL.SEG.update({"NORM": "", "DROPOUT": 0.0})
    tiny_cfg.MODEL.TIMM.DROP_PATH = 0.0
    batch = make_batch("seg", (0,) * 3)
    parts = _gradients(tiny_cfg, batch, PHASES["seg"], 2)
    first, rest = (_gradients(tiny_cfg, part, PHASES["seg"], 0) for part in (batch[:1], batch[1:]))
    assert max(float((parts[key] - first[key] / 3 - rest[key] * 2 / 3).abs().max()) for key in parts) < 1e-10


def test_parts_are_those_of_a_process_and_of_the_tasks_that_are_trained(
    tiny_cfg: CfgNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_cfg.SOLVER.MICRO_BATCH.SEG = 12
    model = build_model(tiny_cfg)
    check_parts(tiny_cfg, model)
    assert "MICRO_BATCH.SEG" in caplog.text
    caplog.clear()
    monkeypatch.setattr(accumulation.comm, "get_world_size", lambda: 2)
    check_parts(tiny_cfg, model)  # 24 images are 12 each
    monkeypatch.undo()
    tiny_cfg.DATASETS.TRAIN = ("tiny_softmax_train",)
    check_parts(tiny_cfg, build_model(tiny_cfg))
    assert not caplog.text


def test_what_parts_change_is_said_and_what_they_cannot_do_refused(
    tiny_cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(tiny_cfg)
    with caplog.at_level(logging.WARNING):
        tiny_cfg.SOLVER.MICRO_BATCH.update({"CLS": 1, "LOC": 1})
        check_parts(tiny_cfg, model)
    assert not caplog.text
    tiny_cfg.SOLVER.MICRO_BATCH.SEG = 8
    with caplog.at_level(logging.WARNING):
        check_parts(tiny_cfg, model)
    assert "MICRO_BATCH.SEG: Dice and batch norms computed over 8 images at a time, not 24" in caplog.text
    caplog.clear()
    tiny_cfg.MODEL.SEG.NORM = "GN"
    tiny_cfg.MODEL.SEG.DIM = 32
    with caplog.at_level(logging.WARNING):
        check_parts(tiny_cfg, build_model(tiny_cfg))
    assert "MICRO_BATCH.SEG: Dice computed over 8 images" in caplog.text and "CLS" not in caplog.text
    tiny_cfg.SOLVER.MICRO_BATCH.SEG = 1
    with pytest.raises(FXError, match="MICRO_BATCH.SEG 1 creates parts of one image"):
        check_parts(tiny_cfg, model)
    model.backbone.trunk.norm = torch.nn.BatchNorm2d(1)
    tiny_cfg.SOLVER.MICRO_BATCH.SEG = 0
    with caplog.at_level(logging.WARNING):
        check_parts(tiny_cfg, model)
    assert "MICRO_BATCH.CLS: batch norms computed over 1 images at a time, not 24" in caplog.text
    tiny_cfg.SOLVER.MICRO_BATCH.LOC = -1
    with pytest.raises(FXError, match="MICRO_BATCH.LOC is -1"):
        check_parts(tiny_cfg, model)
