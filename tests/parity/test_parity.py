"""Our model gives the numbers of the authors' public code, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fx_d2.batch import Batch
from fx_d2.layers.boxes import inverse_sigmoid
from fx_d2.layers.position_encoding import encode_positions
from fx_d2.losses import Match, SetLossWeights, Targets, match_queries, set_losses
from fx_d2.modeling import FoundationX
from fx_d2.modeling.convert.official import CLS_HEADS, LOC_DECODERS, SEG_HEADS
from fx_d2.modeling.detr import denoising
from fx_d2.modeling.detr.decoder import DecoderOutput, LocDecoder, _anchors
from fx_d2.modeling.detr.denoising import NoisedQueries, denoising_match
from fx_d2.modeling.detr.encoder import Memory
from fx_d2.modeling.localization import best_pairs, localization_losses
from fx_d2.modeling.segmentation import segmentation_head

if TYPE_CHECKING:
    from tests.parity.conftest import Reference

SEED = 7  # of the recorded denoising draws


@dataclass
class Trace:
    """A decoder's output, and what passes inside of it."""

    out: DecoderOutput
    hidden: Tensor  # layers, B, Q, C after the norm
    proposals: Tensor  # B, Q, C of the selected tokens
    references: Tensor  # layers + 1, B, Q, 4


@dataclass
class Seen:
    """The batch up to the decoders."""

    features: dict[str, Tensor]
    levels: list[Tensor]
    memory: Memory


@pytest.fixture(scope="module")
def seen(reference: Reference, model: FoundationX) -> Seen:
    return _look(model, reference.images("main"))


def _look(model: FoundationX, images: list[Tensor]) -> Seen:
    batch = Batch.collate([{"image": image} for image in images]).tensors
    padding = batch.get("padding")
    with torch.no_grad():
        features = model.backbone(batch["image"])
        levels = model.backbone.levels(features)
        return Seen(features, levels, model.loc_encoder(levels, padding))


def _trace(decoder: LocDecoder, memory: Memory) -> Trace:
    hidden: list[Tensor] = []
    raw: list[Tensor] = []
    tokens: list[Tensor] = []
    references: list[Tensor] = []
    hooks = [
        decoder.norm.register_forward_hook(lambda m, i, out: hidden.append(out)),
        decoder.proposal_norm.register_forward_hook(lambda m, i, out: tokens.append(out)),
        decoder.norm.register_forward_pre_hook(lambda m, x: raw.append(x[0])),
        # Without padding every level sees the same reference.
        *(layer.register_forward_pre_hook(lambda m, x: references.append(x[2][:, :, 0])) for layer in decoder.layers),
    ]
    with torch.no_grad():
        out = decoder(memory)
        references.append((decoder.refine_head(raw[-1]) + inverse_sigmoid(references[-1])).sigmoid())
    for hook in hooks:
        hook.remove()
    rows = torch.arange(len(out.selected))[:, None]
    return Trace(out, torch.stack(hidden), tokens[0][rows, out.selected], torch.stack(references))


def test_parity_of_trunk_and_classification(reference: Reference, model: FoundationX, seen: Seen) -> None:
    for i in range(4):
        reference.check("trunk", f"backbone_raw{i}", seen.features[f"stage{i}"][:, ::16, ::7, ::7])
    for i, level in enumerate(seen.levels):
        reference.check("trunk, localization norms", f"loc_feature{i}", level[:, ::32, ::7, ::7])
    with torch.no_grad():
        pooled = model.backbone.pooled(seen.features)
        reference.check("pooled feature", "cls_feature", pooled)
        for index, dataset in enumerate(CLS_HEADS):
            reference.check("classification logits", f"cls{index}", model.cls_heads[dataset](pooled))


def test_parity_of_segmentation(
    reference: Reference, official: dict[str, Tensor], model: FoundationX, seen: Seen
) -> None:
    decoder = model.seg_decoder
    with torch.no_grad():
        fused = decoder(list(seen.features.values()))
        # The reference meant to compare trunk features in its consistency loss, and took this instead.
        coarse = decoder.laterals[-1](decoder.pooling(seen.features["stage3"]))
        reference.check("segmentation decoder", "seg_fpn", fused[:, ::8, ::8, ::8])
        reference.check("segmentation decoder", "seg_cons_backbone", F.normalize(coarse, dim=1)[:, ::8])
        for index in range(6):
            if index in SEG_HEADS:
                head = model.seg_heads[SEG_HEADS[index]]
            else:  # in the layout, never trained, without a place in our model
                head = segmentation_head(fused.shape[1], 1).double()
                name = f"backbone.0.segmentation_heads.{index}."
                head.load_state_dict({key: official[name + key] for key in ("weight", "bias")})
            logits = F.interpolate(head(fused), size=(224, 224), mode="bilinear", align_corners=False)
            reference.check("segmentation logits", f"seg{index}", logits[:, :, ::16, ::16])


def test_parity_of_the_encoder(reference: Reference, model: FoundationX, seen: Seen) -> None:
    encoder = model.loc_encoder
    with torch.no_grad():
        sources = [proj(x) for proj, x in zip(encoder.input_proj, [*seen.levels, seen.levels[-1]], strict=True)]
    for i, source in enumerate(sources):
        reference.check("projected levels", f"src{i}", source[:, ::16, ::4, ::4])
    for i, source in enumerate(sources[:3]):
        valid = torch.ones(1, *source.shape[2:], dtype=torch.bool)
        positions = encode_positions(valid, encoder.dim, encoder.temperature, torch.float64).permute(0, 3, 1, 2)
        reference.check("sine positions", f"pos{i}", positions[:, ::16, ::4, ::4])
    reference.check("encoder memory", "memory", seen.memory.tokens[:, ::55, ::8])


@pytest.mark.parametrize("index", range(6))
def test_parity_of_the_decoders(reference: Reference, model: FoundationX, seen: Seen, index: int) -> None:
    decoder = model.loc_decoders[LOC_DECODERS[index]]
    trace, name = _trace(decoder, seen.memory), f"loc{index}"
    out = trace.out
    reference.check("decoders: selected tokens (exact)", f"{name}_topk", out.selected)
    for key, value in (("logits", out.proposal_logits), ("boxes", out.proposal_boxes)):
        reference.check("decoders: proposals", f"{name}_interm_{key}", value[:, ::60])
    rows = torch.arange(2)[:, None]
    anchors, _ = _anchors(seen.memory)
    reference.check("decoders: proposals", f"{name}_init_box_proposal", anchors[rows, out.selected].sigmoid()[:, ::60])
    reference.check("decoders: hidden states", f"{name}_hs", trace.hidden[:, :, ::300, ::16])
    reference.check("decoders: hidden states", f"{name}_hs_enc", trace.proposals[None, :, ::300, ::16])
    reference.check("decoders: references", f"{name}_references", trace.references[:, :, ::180])
    for key, value in (("logits", out.logits), ("boxes", out.boxes)):
        reference.check(f"decoders: {key}", f"{name}_pred_{key}", value[-1, :, ::60])
        reference.check(f"decoders: {key}", f"{name}_aux_{key}", value[:-1, :, ::180])
    scores, columns, corners = best_pairs(out, 300)
    for image, (height, width) in enumerate(((1024, 1024), (512, 768))):
        reference.check("decoders: 50 best", f"{name}_post{image}_scores", scores[image, :50])
        reference.check("decoders: 50 best, class (exact)", f"{name}_post{image}_labels", columns[image, :50])
        pixels = corners[image, :50] * torch.tensor([width, height, width, height])
        reference.check("decoders: 50 best", f"{name}_post{image}_boxes", pixels)


def test_parity_of_a_padded_batch(reference: Reference, model: FoundationX) -> None:
    seen = _look(model, reference.images("padded", (224, 224), (192, 160)))
    reference.check("padded batch", "padded_memory", seen.memory.tokens[:, ::55, ::8])
    with torch.no_grad():
        out = model.loc_decoders["chestx_det"](seen.memory)
    reference.check("padded batch: selected tokens (exact)", "padded_topk", out.selected)
    reference.check("padded batch", "padded_pred_logits", out.logits[-1, :, ::60])
    reference.check("padded batch", "padded_pred_boxes", out.boxes[-1, :, ::60])


def _targets(with_empty: bool) -> Targets:
    """The recorded targets: labels are category ids, which the reference uses as columns."""
    rows = [[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.25, 0.2], [0.5, 0.5, 0.1, 0.1], [0.45, 0.55, 0.3, 0.4]]
    counts = (3, 0 if with_empty else 1)
    labels, boxes = torch.tensor([1, 3, 13, 2]), torch.tensor(rows, dtype=torch.float64)
    return Targets.of_batch(labels[: sum(counts)], boxes[: sum(counts)], counts)


def _terms(
    logits: Tensor, boxes: Tensor, targets: Targets, match: Match, normalizer: float, weights: SetLossWeights
) -> dict[str, Tensor]:
    """The reference's criterion for one layer: our losses unweighted, and its measures that are no losses."""
    unit = replace(weights, loss_class=1.0, loss_l1=1.0, loss_giou=1.0)
    losses = {key: value.sum() for key, value in set_losses(logits, boxes, targets, match, normalizer, unit).items()}
    gap = (boxes.flatten(0, 2)[match.query] - targets.boxes[match.target]).abs() / normalizer
    counts = torch.tensor(targets.counts, dtype=logits.dtype)
    found = (logits[0].argmax(-1) != logits.shape[-1] - 1).sum(1)
    right = logits.flatten(0, 2)[match.query].argmax(-1) == targets.labels[match.target]
    return {
        "loss_ce": losses["class"],
        "loss_bbox": losses["l1"],
        "loss_giou": losses["giou"],
        "loss_xy": gap[:, :2].sum(),
        "loss_hw": gap[:, 2:].sum(),
        "cardinality_error": (found - counts).abs().mean(),
        "class_error": 100 - 100 * right.double().mean(),
    }


def _criterion(
    out: DecoderOutput, targets: Targets, noised: NoisedQueries | None, weights: SetLossWeights
) -> dict[str, Tensor]:
    """Every term by the reference's name."""
    extra = 0 if noised is None else noised.labels.shape[1]
    terms: dict[str, Tensor] = {}
    norm, last = targets.normalizer(), len(out.logits) - 1
    for layer in range(last + 1):
        suffix = "" if layer == last else f"_{layer}"
        logits, boxes = out.logits[layer : layer + 1], out.boxes[layer : layer + 1]
        match = match_queries(logits[:, :, extra:], boxes[:, :, extra:], targets, weights)
        found = _terms(logits[:, :, extra:], boxes[:, :, extra:], targets, match, norm, weights)
        terms |= {key + suffix: value for key, value in found.items() if layer == last or key != "class_error"}
        if noised is not None:
            known = denoising_match(targets, noised, 1)
            found = _terms(logits[:, :, :extra], boxes[:, :, :extra], targets, known, norm * noised.groups, weights)
            terms |= {f"{key}_dn{suffix}": value for key, value in found.items() if key != "class_error"}
    logits, boxes = out.proposal_logits[None], out.proposal_boxes[None]
    found = _terms(logits, boxes, targets, match_queries(logits, boxes, targets, weights), norm, weights)
    return terms | {f"{key}_interm": value for key, value in found.items() if key != "class_error"}


def _check_terms(reference: Reference, folder: str, terms: dict[str, Tensor]) -> None:
    names = [name for name in reference.arrays if name.startswith(f"{folder}/loss") or name.startswith(f"{folder}/c")]
    assert names
    for name in names:
        term = name.rpartition("/")[2]
        # Without denoising queries the reference reports zeros for them; we report nothing.
        absent = torch.tensor(0.0) if folder.startswith("loss_eval") and "_dn" in term else None
        value = terms.get(term, absent)
        assert value is not None, f"{name}: not computed"
        reference.check(f"criterion: {folder}", name, value.double())
    assert set(terms) <= {name.rpartition("/")[2] for name in names}


@pytest.fixture(scope="module")
def answered(model: FoundationX, seen: Seen) -> DecoderOutput:
    with torch.no_grad():
        return model.loc_decoders["chestx_det"](seen.memory)


@pytest.mark.parametrize("with_empty", [False, True])
def test_parity_of_the_criterion(
    reference: Reference, model: FoundationX, answered: DecoderOutput, with_empty: bool
) -> None:
    terms = _criterion(answered, _targets(with_empty), None, model.loc.weights)
    _check_terms(reference, "loss_eval_dec4" + "_with_empty" * with_empty, terms)


def _draw_as_the_reference(
    layout: tuple[int, int, int], num_classes: int, flip: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New labels are drawn for the redrawn ones only: a shape that a device would have to wait for."""
    torch.manual_seed(SEED)
    redraw = torch.rand(layout) < flip
    other = torch.zeros(layout, dtype=torch.int64)
    other[redraw] = torch.randint(0, num_classes, (int(redraw.sum()),))
    sign = torch.randint(0, 2, (*layout, 4)) * 2.0 - 1.0
    return redraw, other, sign, torch.rand((*layout, 4))


@pytest.mark.parametrize("with_empty", [False, True])
def test_parity_of_denoising(
    reference: Reference, model: FoundationX, seen: Seen, with_empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoising, "_draw", _draw_as_the_reference)
    decoder, folder, targets = model.loc_decoders["chestx_det"], "dn" + "_with_empty" * with_empty, _targets(with_empty)
    seen_by_decoder: list[tuple[NoisedQueries, DecoderOutput]] = []
    hook = decoder.register_forward_hook(lambda m, args, out: seen_by_decoder.append((args[1], out)))
    # Ours are classes counted from 0; the configuration makes them the reference's columns.
    own = replace(targets, labels=targets.labels - 1)
    with torch.no_grad():
        losses = localization_losses(decoder, seen.memory, own, model.loc)
    hook.remove()
    ((noised, out),) = seen_by_decoder
    reference.check("denoising: queries", f"{folder}/input_query_bbox", noised.references.double())
    labels = decoder.label_embed(noised.labels) * noised.real[..., None]
    reference.check("denoising: queries", f"{folder}/input_query_label", labels[:, :, ::32])
    packed = torch.from_numpy(np.packbits(noised.blocked.numpy()))
    reference.check("denoising: attention mask (exact)", f"{folder}/attn_mask", packed)
    _check_terms(reference, f"{folder}/loss", _criterion(out, targets, noised, model.loc.weights))
    total = [noised.labels.shape[1], noised.groups, float(sum(losses.values()))]
    reference.check(
        "denoising: weighted total loss", f"{folder}/pad_groups_total", torch.tensor(total, dtype=torch.float64)
    )


def test_parity_covers_every_array(reference: Reference) -> None:
    """Last: whatever no other test looked at would go unnoticed."""
    if len(reference.count) < 5:
        pytest.skip("only some of the tests were selected")
    assert not reference.left
