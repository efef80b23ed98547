"""The whole model in evaluation: what it returns, for which tasks, in which pixels."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch.nn import functional as F

from fx_d2.modeling import FoundationX
from fx_d2.structures import FXError

Make = Any  # the fixture make_batch


@pytest.mark.parametrize("tasks", [None, ["cls"], ["loc"], ["seg", "cls"]], ids=str)
def test_inference_gives_what_is_asked_for(model: FoundationX, make_batch: Make, tasks: list[str] | None) -> None:
    model.eval()
    batch = make_batch("cls", (1, 1, 1))
    for i, x in enumerate(batch):
        x |= {"height": 100 + i, "width": 80} | ({} if tasks is None else {"tasks": tasks})
    results = model(batch)
    keys = {"cls": {"cls"}, "loc": {"instances"}, "seg": {"seg", "masks"}}
    want = set().union(*(keys[t] for t in tasks or keys))
    assert len(results) == 3
    for i, result in enumerate(results):
        assert set(result) == want
        check_result(result, (100 + i, 80))


def check_result(result: dict[str, Any], size: tuple[int, int], network: tuple[int, int] = (64, 64)) -> None:
    if "cls" in result:
        assert result["cls"].shape == (3,) and result["cls"].dtype == torch.float32
        assert ((result["cls"] > 0) & (result["cls"] < 1)).all()
    if "instances" in result:
        found: Instances = result["instances"]
        assert found.image_size == size and len(found) == 8
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert found.pred_classes.min() >= 0 and found.pred_classes.max() < 2
        box, limit = found.pred_boxes.tensor, torch.tensor([size[1], size[0]] * 2)
        assert (box >= 0).all() and (box <= limit).all() and (box[:, 2:] >= box[:, :2]).all()
    if "seg" in result:
        assert result["seg"].shape == (3, *network) and result["seg"].dtype == torch.float32
        assert result["masks"].shape == (3, *size) and result["masks"].dtype == torch.bool
        scaled = F.interpolate(result["seg"][None], size=size, mode="bilinear", align_corners=False)[0]
        assert torch.equal(result["masks"], scaled > 0.5)


def test_columns_beside_a_datasets_classes_are_not_returned(tiny_cfg: CfgNode, make_batch: Make) -> None:
    """With the reference's 14 columns most of the best pairs of a new model are of columns without a class."""
    tiny_cfg.MODEL.LOC.update({"NUM_LOGITS": 14, "LABEL_ROWS": 16, "FIRST_CLASS": 1, "NUM_SELECT": 100})
    torch.manual_seed(0)
    for result in build_model(tiny_cfg).eval()(make_batch("loc")):
        found = result["instances"]
        assert 0 < len(found) < 100 and set(found.pred_classes.tolist()) == {0, 1}


def test_three_means_and_deviations_normalise_three_channels(tiny_cfg: CfgNode, make_batch: Make) -> None:
    """For weights that were trained on ImageNet's channel statistics."""
    batch, results = make_batch("cls", (1,)), []
    for mean, std in (([120.0], [60.0]), ([120.0] * 3, [60.0] * 3), ([124.0, 116.0, 104.0], [58.0, 57.0, 57.0])):
        tiny_cfg.MODEL.PIXEL_MEAN, tiny_cfg.MODEL.PIXEL_STD = mean, std
        torch.manual_seed(0)
        results.append(build_model(tiny_cfg).eval()(batch)[0]["cls"])
    assert torch.equal(results[0], results[1]) and not torch.allclose(results[0], results[2])


def test_inference_leaves_no_graph_and_repeats_itself(model: FoundationX, make_batch: Make) -> None:
    model.eval()
    batch = make_batch("cls")
    first, second = model(batch), model(batch)
    assert not first[0]["cls"].requires_grad and torch.equal(first[1]["cls"], second[1]["cls"])
    assert torch.equal(first[0]["masks"], second[0]["masks"])


def test_results_do_not_depend_on_the_rest_of_the_batch(model: FoundationX, make_batch: Make) -> None:
    model.double().eval()
    batch = make_batch("cls", (1, 1))
    together, alone = model(batch), [model([x])[0] for x in batch]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a["cls"], b["cls"]) and torch.allclose(a["seg"], b["seg"], atol=1e-6)
        assert torch.allclose(a["instances"].scores, b["instances"].scores, atol=1e-6)


def test_softmax_rows_give_a_distribution(model: FoundationX, make_batch: Make) -> None:
    model.eval()
    for result in model(make_batch("cls", dataset="tiny_softmax")):
        assert set(result) == {"cls"} and result["cls"].sum().item() == pytest.approx(1, abs=1e-5)
    assert model(make_batch("cls"))[0]["cls"].sum().item() != pytest.approx(1, abs=1e-3)


def test_an_unknown_dataset_is_named(model: FoundationX, make_batch: Make) -> None:
    with pytest.raises(FXError, match=r"no heads for dataset 'other'; it has \['tiny', 'tiny_softmax'\]"):
        model.eval()(make_batch("cls", dataset="other"))


def test_images_of_several_sizes_share_a_batch(model: FoundationX, make_batch: Make) -> None:
    model.double().eval()
    large, small = make_batch("cls", (1,)), make_batch("cls", (1,), size=(64, 40))
    for result, network in zip(model(large + small), ((64, 64), (64, 40)), strict=True):
        check_result(result, (100, 80), network)
    (alone,), together = model(large), model(large + small)
    assert torch.allclose(alone["cls"], together[0]["cls"])
    assert torch.allclose(alone["instances"].scores, together[0]["instances"].scores, atol=1e-6)


def test_padding_is_zero_after_normalisation(model: FoundationX, make_batch: Make) -> None:
    """As in the reference: not black, whatever the mean grey is."""
    seen: list[torch.Tensor] = []
    model.eval().backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(make_batch("cls", (1,)) + make_batch("cls", (1,), size=(48, 40)))
    small = seen[0][1, 0]
    assert small[:48, :40].all() and not small[48:].any() and not small[:, 40:].any()


def test_boxes_of_a_padded_image_are_relative_to_the_image(model: FoundationX, make_batch: Make) -> None:
    """A proposal in the middle of the valid part lands in the middle of the original image."""
    model.double().eval()
    large, small = make_batch("cls", (1,)), make_batch("cls", (1,), size=(64, 32))
    captured = {}
    model.loc_decoders["tiny"].register_forward_hook(lambda _, args, out: captured.update(memory=args[0], out=out))
    model(large + small)
    memory, out = captured["memory"], captured["out"]
    assert memory.valid_ratios[1, 0].tolist() == [0.5, 1.0]
    # The stride-8 level is 8 x 8; only its left half is image, and its columns spread over the whole image.
    for token, box in zip(out.selected[1].tolist(), out.proposal_boxes[1].tolist(), strict=True):
        if token < 64:
            assert token % 8 < 4 and box[0] == pytest.approx((token % 8 + 0.5) / 4, abs=1e-3)


def test_one_pass_of_trunk_and_shared_parts_serves_all_heads(model: FoundationX, make_batch: Make) -> None:
    model.double().eval()
    batch = make_batch("cls", (1, 1))
    alone = {name: model([x | {"dataset": name} for x in batch]) for name in ("tiny", "tiny_softmax")}
    calls = dict.fromkeys(("backbone", "loc_encoder", "seg_decoder"), 0)
    for name in calls:
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    together = model.predict(batch, {"tiny": ("cls", "loc", "seg"), "tiny_softmax": ("cls",)})
    assert calls == dict.fromkeys(calls, 1)
    for i, found in enumerate(together):
        assert list(found) == ["tiny", "tiny_softmax"] and set(found["tiny_softmax"]) == {"cls"}
        assert found["tiny_softmax"]["cls"].sum().item() == pytest.approx(1)
        for name, result in found.items():
            assert torch.equal(result["cls"], alone[name][i]["cls"])
        assert torch.equal(found["tiny"]["masks"], alone["tiny"][i]["masks"])
        boxes = [r["instances"].pred_boxes.tensor for r in (found["tiny"], alone["tiny"][i])]
        assert torch.equal(*boxes)
    model.predict(batch, {"tiny_softmax": ("cls",)})
    assert calls == {"backbone": 2, "loc_encoder": 1, "seg_decoder": 1}
    model.predict(batch, {"tiny": ("seg",)})
    assert calls == {"backbone": 3, "loc_encoder": 1, "seg_decoder": 2}


def test_the_embedding_is_what_the_classification_heads_read(model: FoundationX, make_batch: Make) -> None:
    model.eval()
    batch = make_batch("cls", (1, 1))
    feature = model.embed(batch)
    scores = model.cls_heads["tiny"](feature).sigmoid()
    assert feature.shape == (2, model.backbone.channels[-1]) and not feature.requires_grad
    assert torch.equal(scores, torch.stack([found["cls"] for found in model(batch)]))


def test_a_single_image_where_group_norms_have_groups_of_one_number(tiny_cfg: CfgNode, make_batch: Make) -> None:
    """64 pixels end in a map of 1 x 1, and 32 groups of 32 channels have a channel each."""
    tiny_cfg.MODEL.LOC.HIDDEN_DIM = tiny_cfg.MODEL.SEG.DIM = 32
    tiny_cfg.MODEL.SEG.update({"NORM": "GN", "POOL_BINS": [1, 2, 3, 6]})
    torch.manual_seed(0)
    model, batch = build_model(tiny_cfg).eval(), make_batch("cls", (1, 1))
    (alone,), (beside, _) = model(batch[:1]), model(batch)
    assert torch.allclose(alone["seg"], beside["seg"], atol=1e-5)
    assert torch.allclose(alone["instances"].scores, beside["instances"].scores, atol=1e-5)
