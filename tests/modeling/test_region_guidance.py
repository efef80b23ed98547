"""Boxes that guide segmentation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from fx_d2.modeling.detr.decoder import DecoderOutput
from fx_d2.modeling.heads import change_heads
from fx_d2.modeling.meta_arch import FoundationX
from fx_d2.modeling.region_guidance import (
    MOST_BOXES,
    Regions,
    RegionSettings,
    build_regions,
    find_regions,
    guide_features,
    region_map,
)
from fx_d2.structures import DatasetSpec, FXError

MakeBatch = Callable[..., list[dict]]
HALF = RegionSettings(weight=0.5, score=0.3, area=1.5)


def slow_map(boxes: list[list[float]], size: tuple[int, int]) -> Tensor:
    """The definition, pixel by pixel: boxes (cx, cy, w, h) that count, grown already."""
    out = torch.ones(size)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = (column + 0.5) / size[1], (row + 0.5) / size[0]
            values = []
            for cx, cy, w, h in boxes:
                dx, dy = max(abs(x - cx) - w / 2, 0), max(abs(y - cy) - h / 2, 0)
                values.append(math.exp(-(dx**2 + dy**2) / (2 * min(1.5 * max(w, h), 1) ** 2)))
            out[row, column] = max(values, default=1.0)
    return out


def test_the_map_is_its_definition_pixel_by_pixel() -> None:
    random = torch.Generator().manual_seed(0)
    boxes = torch.rand(3, 5, 4, generator=random) * 0.5 + 0.1
    kept = torch.tensor([[True, False, True, False, True], [False] * 5, [False, True, False, False, False]])
    found = region_map(Regions(boxes, kept, torch.ones(3, 2)), (9, 13))
    for each, mine, keep in zip(found[:, 0], boxes, kept, strict=True):
        torch.testing.assert_close(each, slow_map(mine[keep].tolist(), (9, 13)))
    assert (found[1] == 1).all() and found[0].min() < 0.9


def test_padding_does_not_move_boxes() -> None:
    """An image that fills the left half of its canvas gets there the map it gets alone."""
    boxes, kept = torch.tensor([[[0.3, 0.6, 0.2, 0.4]]]), torch.ones(1, 1, dtype=torch.bool)
    alone = region_map(Regions(boxes, kept, torch.ones(1, 2)), (8, 8))
    padded = region_map(Regions(boxes, kept, torch.tensor([[0.5, 1.0]])), (8, 16))
    torch.testing.assert_close(padded[..., :8], alone)


def test_a_box_without_a_size_is_a_place() -> None:
    regions = Regions(torch.tensor([[[0.5, 0.5, 0.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 2))
    found = region_map(regions, (3, 3))
    assert found[0, 0, 1, 1] == 1 and found.sum() == 1


def test_boxes_count_from_their_score_in_the_dataset_s_own_columns() -> None:
    logits = torch.full((2, 1, 3, 4), -9.0)
    logits[-1, 0, 0, 1], logits[-1, 0, 1, 0], logits[-1, 0, 2, 2] = 2.0, 5.0, -1.0
    boxes = torch.full((2, 1, 3, 4), 0.9)
    boxes[-1] = torch.tensor([0.5, 0.5, 0.2, 0.4])
    out = DecoderOutput(logits, boxes, logits[-1], boxes[-1], torch.zeros(1, 3, dtype=torch.int64))
    ratios = torch.tensor([[[0.5, 1.0], [0.6, 1.0]]])
    found = find_regions(out, range(1, 3), ratios, HALF)
    assert found.kept.tolist() == [[True, False, False]] and found.ratios.tolist() == [[0.5, 1.0]]
    sides = found.boxes[0, 0, 2:]
    assert float(sides.prod()) == pytest.approx(1.5 * 0.2 * 0.4) and float(sides[1] / sides[0]) == pytest.approx(2)


def test_only_the_best_boxes_count_however_many_score() -> None:
    logits = torch.linspace(1, 2, MOST_BOXES + 5).view(1, 1, -1, 1)
    boxes = logits.sigmoid().expand(-1, -1, -1, 4)
    out = DecoderOutput(logits, boxes, logits[-1], boxes[-1], torch.zeros(1, 0, dtype=torch.int64))
    found = find_regions(out, range(1), torch.ones(1, 1, 2), HALF)
    assert found.kept.shape == (1, MOST_BOXES) and found.kept.all()
    assert torch.equal(found.boxes[0, :, 0], logits.sigmoid().flatten().flip(0)[:MOST_BOXES])


def test_features_are_mixed_with_their_share_inside_the_boxes() -> None:
    regions = Regions(torch.tensor([[[0.25, 0.5, 0.5, 1.0]]]), torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 2))
    features = {"a": torch.randn(1, 3, 4, 8), "b": torch.randn(1, 3, 2, 4).bfloat16()}
    guided = guide_features(features, regions, 0.5)
    for name, x in features.items():
        near = region_map(regions, (x.shape[-2], x.shape[-1]))
        torch.testing.assert_close(guided[name], x * (0.5 + 0.5 * near).to(x.dtype))
        assert guided[name].dtype == x.dtype
        half = x.shape[-1] // 2
        assert torch.equal(guided[name][..., :half], x[..., :half])
        assert (guided[name][..., half:].abs() < x[..., half:].abs()).all()


@pytest.mark.parametrize("wrong", [{"WEIGHT": 1.5}, {"SCORE": 1.0}, {"AREA": 0.0}])
def test_values_without_sense_are_refused(tiny_cfg: CfgNode, wrong: dict[str, float]) -> None:
    tiny_cfg.MODEL.SEG.REGION.update(wrong)
    with pytest.raises(FXError, match="MODEL.SEG.REGION"):
        build_regions(tiny_cfg)


@pytest.fixture
def guided(tiny_cfg: CfgNode) -> FoundationX:
    """A model whose every box counts."""
    torch.manual_seed(0)
    tiny_cfg.MODEL.SEG.REGION.update({"WEIGHT": 0.5, "SCORE": 0.0})
    tiny_cfg.MODEL.LOC.SHARED_DECODER = True
    model = build_model(tiny_cfg).eval()
    with torch.no_grad():  # boxes away from their first, all alike sizes
        for head in (model.loc_decoders["tiny"].box_head, model.loc_decoders["tiny"].proposal_box):
            head[-2].bias.copy_(torch.tensor([0.3, -0.3, -1.0, -0.5]))
    return model


def test_training_and_test_see_the_same_features(
    guided: FoundationX, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What enters the segmentation decoder, and by how much it differs from unguided features."""
    batch, seen = make_batch("seg"), []
    guided.seg_decoder.register_forward_hook(lambda _, args, out: seen.append([x.detach() for x in args[0]]))
    guided(batch)
    guided.shared_outputs(batch, "seg", ("seg_decoder",), view="image")
    guided.training = True  # losses, with every part in evaluation as in a locked pass
    guided(batch)
    monkeypatch.setattr(guided, "regions", RegionSettings(0.0, 0.0, 1.5))
    guided(batch)
    test, teacher, training, plain = seen
    for a, b, c, d in zip(test, teacher, training, plain, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a)
        assert ((a.abs() - d.abs()) <= 1e-6).all()
    assert (test[0] - plain[0]).abs().max() > 0.01


def test_boxes_are_constants_for_segmentation(guided: FoundationX, make_batch: MakeBatch) -> None:
    guided.training = True
    losses = guided(make_batch("seg"))
    sum(losses.values()).backward()
    for name in ("loc_encoder", "loc_decoders"):
        assert all(p.grad is None for p in getattr(guided, name).parameters()), name
    assert guided.backbone.loc_norms[0].weight.grad is None
    assert any(p.grad is not None for p in guided.backbone.parameters())


def test_alone_and_with_other_tasks_a_mask_is_the_same(guided: FoundationX, make_batch: MakeBatch) -> None:
    batch = make_batch("seg")
    alone = guided([x | {"tasks": ["seg"]} for x in batch])
    together = guided([x | {"tasks": ["cls", "loc", "seg"]} for x in batch])
    assert all(torch.equal(a["seg"], b["seg"]) for a, b in zip(alone, together, strict=True))
    assert "instances" not in alone[0] and "instances" in together[0]


def test_guided_segmentation_keeps_its_decoder(guided: FoundationX, tiny_cfg: CfgNode, tiny_spec: DatasetSpec) -> None:
    alone = DatasetSpec(name="tiny", title="Tiny", seg_classes=tiny_spec.seg_classes)
    with pytest.raises(FXError, match="tiny: its segmentation is guided by its own boxes"):
        change_heads(guided, tiny_cfg, [alone])
