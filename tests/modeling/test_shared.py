"""What the shared parts give for a task, when they run, and what is compared of it."""

from typing import Any
from unittest import mock

import torch

from fx_d2.batch import Batch
from fx_d2.modeling import FoundationX
from fx_d2.modeling.shared import SharedPass
from fx_d2.structures import TASK_COMPONENTS

Make = Any  # the fixture make_batch


def test_what_is_compared_with_the_teacher(model: FoundationX, make_batch: Make) -> None:
    model.eval()
    batch = make_batch("cls", (1, 1))
    images = torch.stack([x["image"] for x in batch]).float()
    features = model.backbone((images - model.pixel_mean) / model.pixel_std)
    outputs = {
        task: model.shared_outputs(batch, task, TASK_COMPONENTS[task][:-1], view="image") for task in TASK_COMPONENTS
    }
    assert torch.allclose(outputs["cls"]["backbone"], model.backbone.pooled(features))
    levels = model.backbone.levels(features)
    assert torch.allclose(outputs["loc"]["backbone"], torch.cat([x.flatten(1) for x in levels], 1))
    assert torch.allclose(outputs["loc"]["loc_encoder"], model.loc_encoder(levels, None).tokens)
    for key, x in (("backbone", features["stage3"]), ("seg_decoder", model.seg_decoder(list(features.values())))):
        assert torch.allclose(outputs["seg"][key], x / x.norm(dim=1, keepdim=True).clamp(min=1e-12), atol=1e-6)


def test_nothing_is_computed_beyond_what_is_wanted(model: FoundationX, make_batch: Make) -> None:
    assert model.loc_encoder is not None and model.seg_decoder is not None
    with (
        mock.patch.object(model.loc_encoder, "forward", side_effect=AssertionError),
        mock.patch.object(model.seg_decoder, "forward", side_effect=AssertionError),
    ):
        for task in ("loc", "seg"):
            assert list(model.shared_outputs(make_batch(task), task, ["backbone"], view="image")) == ["backbone"]


def test_a_part_runs_once(model: FoundationX, make_batch: Make) -> None:
    """What a head read is what is compared."""
    model.eval()
    for task, part in (("cls", model.backbone.trunk), ("loc", model.loc_encoder), ("seg", model.seg_decoder)):
        runs: list[None] = []
        handle = part.register_forward_hook(lambda *_, runs=runs: runs.append(None))
        shared = SharedPass(model, Batch.collate(make_batch(task)), task)
        read = {"cls": "pooled", "loc": "memory", "seg": "fused"}[task]
        assert getattr(shared, read) is getattr(shared, read)
        for component in TASK_COMPONENTS[task][:-1]:
            shared.compared(component)
        handle.remove()
        assert len(runs) == 1
