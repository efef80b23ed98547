"""The branch's losses and its selection of boxes."""

import dataclasses
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.engine import apply_phase
from fx_d2.losses import Match, SetLossWeights, Targets, match_queries, set_losses
from fx_d2.modeling.detr.decoder import DecoderOutput, LocDecoder
from fx_d2.modeling.detr.denoising import denoising_match, noise_targets
from fx_d2.modeling.detr.encoder import Memory
from fx_d2.modeling.localization import (
    LocSettings,
    best_pairs,
    build_decoder,
    build_encoder,
    build_settings,
    criterion,
    localization_losses,
    select_boxes,
)
from fx_d2.structures import FXError, Phase

Losses = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def decoder(tiny_cfg: CfgNode) -> LocDecoder:
    torch.manual_seed(0)
    model = build_decoder(tiny_cfg, num_classes=2, levels=2)
    torch.nn.init.normal_(model.box_head[6].weight, std=0.1)  # away from "no change", the start
    return model


@pytest.fixture
def settings(tiny_cfg: CfgNode) -> LocSettings:
    return build_settings(tiny_cfg)


def memory(batch: int) -> Memory:
    torch.manual_seed(1)
    return Memory(torch.randn(batch, 20, 64), ((4, 4), (2, 2)), None, torch.ones(batch, 2, 2))


def targets(*counts: int) -> Targets:
    """Images with the first `count` of two boxes, of classes 0 and 1."""
    boxes = torch.tensor([[0.25, 0.3125, 0.25, 0.375], [0.703125, 0.625, 0.46875, 0.3125]])
    which = torch.tensor([slot for count in counts for slot in range(count)], dtype=torch.int64)
    return Targets.of_batch(which, boxes[which], counts)


def test_the_config_s_defaults_are_dino_s(tiny_cfg: CfgNode) -> None:
    assert build_settings(tiny_cfg).weights == SetLossWeights() == SetLossWeights(1, 5, 2, 2, 5, 2, 0.25, 2, 0)


def test_settings_follow_the_config(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.LOC.LOSS.update({"CLASS": 1.5, "L1": 2.5, "GIOU": 3.5, "ENC": 0.25})
    tiny_cfg.MODEL.LOC.COST.update({"CLASS": 4.5, "L1": 5.5, "GIOU": 6.5})
    tiny_cfg.MODEL.LOC.update({"FOCAL_ALPHA": 0.3, "FOCAL_GAMMA": 1.0, "DN_NUMBER": 3, "NUM_SELECT": 4})
    tiny_cfg.MODEL.LOC.update({"DN_LABEL_NOISE": 0.6, "DN_BOX_NOISE": 0.7})
    tiny_cfg.MODEL.LOC.update({"GIOU_EPS": 1e-6, "FIRST_CLASS": 1})
    weights = SetLossWeights(1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 0.3, 1.0, 1e-6)
    assert build_settings(tiny_cfg) == LocSettings(weights, 0.25, 3, 0.6, 0.7, 4, 1)


def test_parts_follow_the_config(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.LOC.update({"TIE_BOX_HEADS": False, "ENC_LAYERS": 2, "NUM_HEADS": 4, "NUM_POINTS": 3})
    tiny_cfg.MODEL.LOC.update({"TOKEN_TEMPERATURE": 15.0, "BOX_TEMPERATURE": 25.0})
    encoder, decoder = build_encoder(tiny_cfg, (8, 16)), build_decoder(tiny_cfg, 5, 3)
    assert encoder.num_levels == 3 and len(encoder.layers) == 2 and encoder.dim == 64
    assert decoder.num_classes == 5 and decoder.num_queries == 10 and len(decoder.layers) == 3
    assert decoder.refine_head is not None and decoder.class_head.out_features == 5
    assert (encoder.temperature, decoder.box_temperature) == (15, 25) and encoder.decoder_stack is None
    for layer, attention in ((encoder.layers[1], "attention"), (decoder.layers[2], "cross_attention")):
        part = getattr(layer, attention)
        assert (part.heads, part.levels, part.points, part.sampler) == (4, 3, 3, "auto")
        assert layer.ffn.linear1.out_features == 32
    assert decoder.layers[0].self_attention.num_heads == 4


def test_logits_and_label_embeddings_follow_the_config(tiny_cfg: CfgNode) -> None:
    for keys, logits, rows in (({}, 2, 2), ({"FIRST_CLASS": 1}, 3, 3), ({"NUM_LOGITS": 4, "LABEL_ROWS": 6}, 4, 6)):
        tiny_cfg.MODEL.LOC.update({"FIRST_CLASS": 0, "NUM_LOGITS": 0, "LABEL_ROWS": 0} | keys)
        decoder = build_decoder(tiny_cfg, 2, 3)
        assert decoder.num_classes == decoder.class_head.out_features == decoder.proposal_class.out_features == logits
        assert decoder.label_embed.num_embeddings == rows and not decoder.rank_all_tokens
    tiny_cfg.MODEL.LOC.RANK_ALL_TOKENS = True
    assert build_decoder(tiny_cfg, 2, 3).rank_all_tokens


@pytest.mark.parametrize("keys", [{"NUM_LOGITS": 2}, {"NUM_LOGITS": 4, "LABEL_ROWS": 3}, {"FIRST_CLASS": -1}])
def test_classes_that_do_not_fit(tiny_cfg: CfgNode, keys: dict[str, int]) -> None:
    tiny_cfg.MODEL.LOC.update({"FIRST_CLASS": 1} | keys)
    with pytest.raises(FXError, match="2 box classes need columns .* MODEL.LOC.NUM_LOGITS"):
        build_decoder(tiny_cfg, 2, 3)


def test_the_first_class_shifts_the_truth(tiny_cfg: CfgNode, settings: LocSettings) -> None:
    """Classes from column 1 on cost what classes one higher cost from column 0 on."""
    torch.manual_seed(0)
    decoder = build_decoder(tiny_cfg, num_classes=4, levels=2)
    higher = dataclasses.replace(targets(2), labels=targets(2).labels + 1)
    results = []
    for truth, first in ((targets(2), 1), (higher, 0), (targets(2), 0)):
        torch.manual_seed(3)
        changed = dataclasses.replace(settings, first_class=first)
        results.append(localization_losses(decoder, memory(1), truth, changed))
    assert results[0] == results[1] and results[0]["class"] != results[2]["class"]


def test_terms(decoder: LocDecoder, settings: LocSettings) -> None:
    losses = localization_losses(decoder, memory(2), targets(2, 0), settings)
    assert set(losses) == {f"{part}{term}" for part in ("", "dn_", "enc_") for term in ("class", "l1", "giou")}
    assert all(x.ndim == 0 and x.isfinite() and x > 0 for x in losses.values())


def test_terms_are_sums_over_the_layers_and_proposals_are_a_layer_of_their_own(
    decoder: LocDecoder, settings: LocSettings
) -> None:
    truth, weights = targets(1, 2), settings.weights
    noised = noise_targets(truth, num_queries=10, num_classes=2, pairs=6, label_noise=0.5, box_noise=1.0)
    with torch.no_grad():
        out = decoder(memory(2), noised)
    extra = noised.labels.shape[1]

    def alone(logits: torch.Tensor, boxes: torch.Tensor, match: Match | None, norm: float) -> dict[str, torch.Tensor]:
        match = match or match_queries(logits[None], boxes[None], truth, weights)
        return set_losses(logits[None], boxes[None], truth, match, norm, weights)

    layers = list(zip(out.logits, out.boxes, strict=True))
    own = [alone(logits[:, extra:], boxes[:, extra:], None, 3) for logits, boxes in layers]
    match = denoising_match(truth, noised, 1)
    known = [alone(logits[:, :extra], boxes[:, :extra], match, 3 * noised.groups) for logits, boxes in layers]
    proposals = alone(out.proposal_logits, out.proposal_boxes, None, 3)
    got = criterion(out, truth, noised, weights, 0.5)
    for key, proposed in proposals.items():
        assert got[key].item() == pytest.approx(sum(float(x[key]) for x in own))
        assert got[f"dn_{key}"].item() == pytest.approx(sum(float(x[key]) for x in known))
        assert got[f"enc_{key}"].item() == pytest.approx(0.5 * float(proposed))


def test_denoising_and_proposals_can_be_switched_off(decoder: LocDecoder, settings: LocSettings) -> None:
    """Off, but every parameter still takes part, as DDP needs."""
    off = dataclasses.replace(settings, dn_number=0, proposal_weight=0.0)
    losses = localization_losses(decoder, memory(2), targets(2, 1), off)
    assert not any(key.startswith("dn_") for key in losses)
    assert all(value == 0 for key, value in losses.items() if key.startswith("enc_"))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert [n for n, p in decoder.named_parameters() if p.grad is None] == []
    assert decoder.proposal_class.weight.grad.abs().max() == decoder.label_embed.weight.grad.abs().max() == 0


def test_the_proposal_weight_scales_the_proposals_only(decoder: LocDecoder, settings: LocSettings) -> None:
    results = []
    for weight in (1.0, 0.5):
        torch.manual_seed(3)
        changed = dataclasses.replace(settings, proposal_weight=weight)
        results.append(localization_losses(decoder, memory(2), targets(2, 0), changed))
    for key, value in results[0].items():
        factor = 0.5 if key.startswith("enc_") else 1.0
        assert results[1][key].item() == pytest.approx(factor * value.item())


def test_denoising_losses_are_a_mean_over_groups(decoder: LocDecoder, settings: LocSettings) -> None:
    """Without noise every group says the same, so the number of groups does not matter."""
    results = []
    for pairs in (2, 8):
        still = dataclasses.replace(settings, dn_number=pairs, dn_label_noise=0.0, dn_box_noise=0.0)
        results.append(localization_losses(decoder, memory(1), targets(2), still))
    for term in ("dn_class", "dn_l1", "dn_giou"):
        assert results[0][term] > 0.01
        assert results[0][term].item() == pytest.approx(results[1][term].item(), rel=1e-4)


def test_the_learned_queries_losses_do_not_feel_denoising(decoder: LocDecoder, settings: LocSettings) -> None:
    results = [
        localization_losses(decoder, memory(2), targets(2, 0), dataclasses.replace(settings, dn_number=n))
        for n in (0, 6)
    ]
    for term in ("class", "l1", "giou"):
        assert results[0][term].item() == pytest.approx(results[1][term].item(), rel=1e-4)


def test_noise_follows_the_settings(decoder: LocDecoder, settings: LocSettings) -> None:
    settings = dataclasses.replace(settings, dn_number=3, dn_label_noise=0.25, dn_box_noise=0.75)
    with mock.patch("fx_d2.modeling.localization.noise_targets", wraps=noise_targets) as draw:
        localization_losses(decoder, memory(1), targets(1), settings)
    want = {"num_queries": 10, "num_classes": 2, "pairs": 3, "label_noise": 0.25, "box_noise": 0.75}
    assert draw.call_args.kwargs == want


def test_a_batch_without_any_box(decoder: LocDecoder, settings: LocSettings) -> None:
    losses = localization_losses(decoder, memory(2), targets(0, 0), settings)
    assert all(x.isfinite() for x in losses.values()) and losses["class"] > 0
    assert all(value == 0 for key, value in losses.items() if not key.endswith("class"))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_the_normalizer_is_asked_once_even_without_boxes(decoder: LocDecoder, settings: LocSettings) -> None:
    """It is a collective call: a rank that skipped it would hang the others."""
    with mock.patch.object(Targets, "normalizer", return_value=2.0) as normalizer:
        localization_losses(decoder, memory(1), targets(0), settings)
    assert normalizer.call_count == 1


def output() -> DecoderOutput:
    logits = torch.full((2, 1, 3, 2), -9.0)
    logits[-1, 0] = torch.tensor([[0.0, 2.0], [-1.0, 1.0], [-2.0, -3.0]])
    boxes = torch.full((2, 1, 3, 4), 0.9)
    boxes[-1, 0] = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.0, 0.0, 0.5, 0.5], [0.5, 0.25, 1.0, 0.5]])
    return DecoderOutput(logits, boxes, logits[0], boxes[0], torch.zeros(1, 3, dtype=torch.int64))


def test_the_best_pairs_of_query_and_class_in_original_pixels() -> None:
    (found,) = select_boxes(output(), [(200, 100)], num_select=4)
    assert found.image_size == (200, 100)
    assert found.scores.tolist() == pytest.approx(torch.tensor([2.0, 1.0, 0.0, -1.0]).sigmoid().tolist())
    assert found.pred_classes.tolist() == [1, 1, 0, 0]
    first, second = [40.0, 60.0, 60.0, 140.0], [0.0, 0.0, 25.0, 50.0]  # the second is clipped at the corner
    want = torch.tensor([first, second, first, second])
    assert torch.allclose(found.pred_boxes.tensor, want, atol=1e-4)


def test_columns_that_are_no_class_take_places_but_are_not_returned() -> None:
    best = [x.tolist() for x in best_pairs(output(), 3)[:2]]
    assert best[1] == [[1, 1, 0]]
    (found,) = select_boxes(output(), [(200, 100)], 3, range(1, 2))
    assert found.pred_classes.tolist() == [0, 0] and found.scores.tolist() == best[0][0][:2]
    assert found.pred_boxes.tensor.tolist()[0] == pytest.approx([40.0, 60.0, 60.0, 140.0])
    (found,) = select_boxes(output(), [(200, 100)], 3, range(0, 1))
    assert found.pred_classes.tolist() == [0] and len(found.pred_boxes) == 1


def test_float64_stays() -> None:
    out = output()
    wide = dataclasses.replace(out, logits=out.logits.double(), boxes=out.boxes.double())
    assert {x.dtype for x in best_pairs(wide, 4)} == {torch.float64, torch.int64}


def test_fewer_candidates_than_wanted() -> None:
    (found,) = select_boxes(output(), [(200, 100)], num_select=300)
    assert len(found) == 6 and found.scores.dtype == torch.float32
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("trains", "again"), [(("backbone", "loc_encoder", "loc_decoders"), 5), (("loc_decoders",), 3)]
)
def test_recomputed_layers_have_the_same_gradients(
    tiny_cfg: CfgNode, make_batch: Callable, trains: tuple[str, ...], again: int, shared: bool
) -> None:
    """Trunk, encoder and decoder, released and locked; drop path draws the same again."""
    gradients, calls = [], []
    tiny_cfg.MODEL.LOC.update({"ENC_LAYERS": 2, "SHARED_DECODER": shared})
    for recompute in (False, True):
        tiny_cfg.MODEL.LOC.GRAD_CHECKPOINTING = tiny_cfg.MODEL.TIMM.GRAD_CHECKPOINTING = recompute
        torch.manual_seed(0)
        model = build_model(tiny_cfg)
        batch = make_batch("loc", (2, 1))
        apply_phase(model, Phase("tiny", "loc", trains))
        stack = model.loc_encoder.decoder_stack if shared else model.loc_decoders["tiny"]
        before = len(calls)
        for layer in (*model.loc_encoder.layers, *stack.layers):
            layer.register_forward_pre_hook(lambda *_: calls.append(1))
        torch.stack(list(model(batch).values())).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert len(calls) - before == 5 + (again if recompute else 0)
    kept, recomputed = gradients
    assert set(kept) == set(recomputed) and len(kept) > 50 * (not shared)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
