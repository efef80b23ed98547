"""Query selection, refinement, heads, and what denoising queries must not change."""

import dataclasses
import math

import pytest
import torch

from fx_d2.layers.position_encoding import encode_boxes
from fx_d2.losses import Targets
from fx_d2.modeling.detr.decoder import DecoderOutput, LocDecoder, _anchors
from fx_d2.modeling.detr.denoising import NoisedQueries, noise_targets
from fx_d2.modeling.detr.encoder import Memory

SHAPES = ((5, 4), (3, 2))
TOKENS, DIM, CLASSES, LAYERS = 26, 16, 3, 3


def decoder(queries: int = 7, layers: int = LAYERS, tied: bool = True) -> LocDecoder:
    """Weights away from their start, where box heads change nothing."""
    torch.manual_seed(0)
    model = LocDecoder(
        num_classes=CLASSES,
        num_queries=queries,
        dim=DIM,
        heads=2,
        levels=2,
        points=2,
        ffn_dim=16,
        layers=layers,
        box_temperature=10000.0,
        tie_box_heads=tied,
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def memory(padding: torch.Tensor | None = None) -> Memory:
    torch.manual_seed(1)
    tokens = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    return Memory(tokens, SHAPES, padding, torch.ones(2, 2, 2, dtype=torch.float64))


def noised(queries: int = 7) -> NoisedQueries:
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.3, 0.6, 0.2, 0.4]], dtype=torch.float64)
    truth = Targets.of_batch(torch.tensor([1, 2]), boxes, (2, 0))
    return noise_targets(truth, num_queries=queries, num_classes=CLASSES, pairs=4, label_noise=0.5, box_noise=1.0)


def test_shapes_and_ranges() -> None:
    out = decoder()(memory())
    assert out.logits.shape == (LAYERS, 2, 7, CLASSES) and out.boxes.shape == (LAYERS, 2, 7, 4)
    assert out.proposal_logits.shape == (2, 7, CLASSES) and out.proposal_boxes.shape == (2, 7, 4)
    assert out.selected.shape == (2, 7) and out.selected.dtype == torch.int64
    for boxes in (out.boxes, out.proposal_boxes):
        assert boxes.min() >= 0 and boxes.max() <= 1


def test_queries_are_the_tokens_whose_best_class_scores_highest() -> None:
    model, source = decoder(), memory()
    out = model(source)
    # A centre within 0.01 of the border could not propose; here every token can.
    scores = model.proposal_class(model.proposal_norm(model.proposal_proj(model.memory_proj(source.tokens))))
    for image in range(2):
        best = scores[image].max(-1).values
        assert out.selected[image].tolist() == best.argsort(descending=True)[:7].tolist()
        assert torch.allclose(out.proposal_logits[image], scores[image, out.selected[image]])


def test_proposals_start_from_the_token_s_place_and_its_level_s_size() -> None:
    model = decoder(queries=TOKENS)
    last = model.proposal_box[6]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    out = model(memory())
    for token, box in zip(out.selected[0].tolist(), out.proposal_boxes[0].tolist(), strict=True):
        level = int(token >= 20)
        y, x = divmod(token - 20 * level, SHAPES[level][1])
        side = 0.05 * 2**level
        assert box == pytest.approx([(x + 0.5) / SHAPES[level][1], (y + 0.5) / SHAPES[level][0], side, side])


def test_tokens_at_the_border_do_not_propose() -> None:
    """Of a row of 64, the first and the last have their centre within a hundredth of the image's side."""
    for shape in ((1, 64), (64, 1)):
        row = Memory(torch.zeros(2, 64, DIM), (shape,), None, torch.ones(2, 1, 2))
        for source in (row, dataclasses.replace(row, padding=torch.zeros(2, 64, dtype=torch.bool))):
            anchors, usable = _anchors(source)
            assert usable[0].tolist() == [False, *[True] * 62, False]
            assert anchors.shape == (2, 64, 4) and torch.equal(anchors.isfinite().all(-1), usable.expand(2, -1))


def test_there_are_never_more_queries_than_tokens() -> None:
    out = decoder(queries=900)(memory())
    assert out.logits.shape[2] == TOKENS and sorted(out.selected[0].tolist()) == list(range(TOKENS))


def test_padding_proposes_only_when_nothing_else_is_left() -> None:
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 10:] = True
    model = decoder(queries=12)
    torch.nn.init.zeros_(model.proposal_class.weight)  # all scores equal: a tie must not let padding in
    out = model(memory(padding))
    assert set(out.selected[1, :10].tolist()) == set(range(10)) and padding[1, out.selected[1, 10:]].all()
    assert out.proposal_boxes.isfinite().all() and out.logits.isfinite().all()
    (out.logits.sum() + out.boxes.sum() + out.proposal_boxes.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_all_tokens_can_be_ranked() -> None:
    """The reference's order: padding and border have the score of a token of zeros, which may be the best."""
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 10:] = True
    model = decoder(queries=12)
    model.rank_all_tokens = True
    source = memory(padding)
    kept = torch.where(padding[..., None], 0, model.memory_proj(source.tokens))
    scores = model.proposal_class(model.proposal_norm(model.proposal_proj(kept))).max(-1).values
    out = model(source)
    for image in range(2):
        assert out.selected[image].tolist() == scores[image].topk(12).indices.tolist()
    assert out.boxes.isfinite().all()


def test_label_embeddings_may_outnumber_the_logits() -> None:
    model = LocDecoder(
        num_classes=3, num_queries=2, dim=8, heads=1, levels=1, points=1, ffn_dim=8, layers=1, box_temperature=20.0,
        tie_box_heads=False, label_rows=5,
    )  # fmt: skip
    assert (model.class_head.out_features, model.label_embed.num_embeddings) == (3, 5)


def test_padding_has_no_influence() -> None:
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 20:] = True
    model, source = decoder(), memory(padding)
    changed = dataclasses.replace(source, tokens=source.tokens.clone())
    changed.tokens[1, 20:] = 5.0
    assert torch.equal(model(source).logits, model(changed).logits)


def assert_same_matching_part(alone: DecoderOutput, mixed: DecoderOutput, extra: int) -> None:
    assert torch.allclose(alone.logits, mixed.logits[:, :, extra:], rtol=0, atol=1e-11)
    assert torch.allclose(alone.boxes, mixed.boxes[:, :, extra:], rtol=0, atol=1e-11)
    assert torch.equal(alone.selected, mixed.selected)


@pytest.mark.parametrize("tied", [True, False])
def test_denoising_queries_do_not_touch_the_learned_ones(tied: bool) -> None:
    model, source, extra = decoder(tied=tied), memory(), noised()
    alone, mixed = model(source), model(source, extra)
    width = extra.labels.shape[1]
    assert width == 8 and mixed.logits.shape == (LAYERS, 2, width + 7, CLASSES)
    assert_same_matching_part(alone, mixed, width)
    unmasked = model(source, dataclasses.replace(extra, blocked=torch.zeros_like(extra.blocked)))
    assert_same_matching_part(alone, unmasked, width)
    assert not torch.allclose(mixed.logits[:, :, :width], unmasked.logits[:, :, :width])


def test_a_group_does_not_see_another_group() -> None:
    model, source, extra = decoder(), memory(), noised()
    size = extra.labels.shape[1] // extra.groups
    other = dataclasses.replace(extra, labels=extra.labels.clone(), references=extra.references.clone())
    other.labels[:, size:] = (other.labels[:, size:] + 1) % CLASSES
    other.references[:, size:] += 1
    before, after = model(source, extra).logits, model(source, other).logits
    assert torch.allclose(before[:, :, :size], after[:, :, :size], rtol=0, atol=1e-11)
    assert not torch.allclose(before[:, 0, size : 2 * size], after[:, 0, size : 2 * size])


def test_no_denoising_query_equals_none() -> None:
    truth = Targets.of_batch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.float64), (0, 0))
    empty = noise_targets(truth, num_queries=7, num_classes=CLASSES, pairs=0, label_noise=0.5, box_noise=1.0)
    model, source = decoder(), memory()
    assert_same_matching_part(model(source), model(source, empty), 0)


def test_each_layer_refines_the_box_of_the_one_before() -> None:
    """With a constant step d, layer l gives sigmoid(inverse_sigmoid(reference) + (l + 1) * d)."""
    model = decoder()
    last = model.box_head[6]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 0.05)
    out = model(memory())
    start = torch.logit(out.proposal_boxes.detach())
    inner = ((out.proposal_boxes > 0.01) & (out.proposal_boxes < 0.9)).detach()
    assert inner.any()
    for layer in range(LAYERS):
        want = (start + 0.05 * (layer + 1)).sigmoid()
        assert torch.allclose(out.boxes[layer][inner], want[inner], atol=1e-6)


def test_what_each_part_of_a_layer_reads() -> None:
    """Positions, those of the finest level, are added to what asks and not to what is read; untied, the refining head
    alone reads what is not normed.
    """
    model, source = decoder(layers=2, tied=False), memory(torch.arange(TOKENS).expand(2, -1) > 22)
    ratios = torch.tensor([[[1.0, 0.9], [0.8, 0.7]], [[0.6, 0.5], [0.4, 0.3]]], dtype=torch.float64)
    seen: dict[str, tuple] = {}
    for name, part in model.named_modules():
        part.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args, out)}))
    proposed = model(dataclasses.replace(source, valid_ratios=ratios)).proposal_boxes
    (x, positions, references, *_), out = seen["layers.0"]
    assert torch.allclose(references, proposed[:, :, None] * ratios.repeat(1, 1, 2)[:, None])
    assert torch.equal(positions, model.position_head(encode_boxes(references[:, :, 0], DIM, 10000.0)))
    layer = model.layers[0]
    (asks, reads, _), found = seen["layers.0.self_attention"]
    assert torch.equal(asks, x + positions) and torch.equal(reads, x)
    x = layer.self_norm(x + found)
    (asks, _, reads, *_), found = seen["layers.0.cross_attention"]
    assert torch.equal(asks, x + positions) and torch.equal(reads, seen["memory_proj"][1])
    assert torch.equal(out, layer.ffn(layer.cross_norm(x + found)))
    last = model.norm(seen["layers.1"][1])
    for head, reads in (("class_head", last), ("box_head", last), ("refine_head", out)):
        assert torch.equal(seen[head][0][0], reads)


def test_untied_heads_refine_with_one_and_answer_with_the_other() -> None:
    model = decoder(tied=False)
    assert model.refine_head is not None
    for head, step in ((model.box_head, 0.0), (model.refine_head, 0.05)):
        torch.nn.init.zeros_(head[6].weight)
        torch.nn.init.constant_(head[6].bias, step)
    out = model(memory())
    start = torch.logit(out.proposal_boxes.detach())
    inner = ((out.proposal_boxes > 0.01) & (out.proposal_boxes < 0.9)).detach()
    for layer in range(LAYERS):
        assert torch.allclose(out.boxes[layer][inner], (start + 0.05 * layer).sigmoid()[inner], atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_layer_s_box_trains_the_refinement_before_it_and_none_further_back(tied: bool) -> None:
    """DINO looks forward twice, not through all layers."""
    model, steps = decoder(tied=tied), []
    (model.box_head if tied else model.refine_head).register_forward_hook(lambda _, __, out: steps.append(out))
    boxes = model(memory()).boxes
    first, second = torch.autograd.grad(boxes[2].sum(), steps[:2])
    assert first.abs().max() == 0 < second.abs().max()


@pytest.mark.parametrize("tied", [True, False])
def test_every_layer_s_boxes_train_the_box_heads(tied: bool) -> None:
    model, source = decoder(tied=tied), memory()
    for layer in range(LAYERS):
        model.zero_grad(set_to_none=True)
        model(source).boxes[layer].sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.box_head.parameters())
        if model.refine_head is not None and layer > 0:
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.refine_head.parameters())


def test_references_are_detached() -> None:
    """The first layer's boxes train neither the proposals nor any refinement: those start from fixed references."""
    model = decoder(tied=False)
    model(memory()).boxes[0].sum().backward()
    assert model.refine_head is not None
    others = [*model.refine_head.parameters(), *model.proposal_box.parameters(), *model.layers[1].parameters()]
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in others)


@pytest.mark.parametrize(("layers", "tied"), [(1, True), (1, False), (2, True), (3, False)])
def test_no_parameter_waits_for_a_gradient(layers: int, tied: bool) -> None:
    model = decoder(layers=layers, tied=tied)
    out = model(memory(), noised())
    (out.logits.sum() + out.boxes.sum() + out.proposal_logits.sum() + out.proposal_boxes.sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_padded_denoising_queries_carry_no_label() -> None:
    """What an unreal query says does not depend on the label its padding holds."""
    model, source, extra = decoder(), memory(), noised()
    other = dataclasses.replace(extra, labels=torch.where(extra.real, extra.labels, 2))
    assert not torch.equal(extra.labels, other.labels)
    assert torch.equal(model(source, extra).logits, model(source, other).logits)


def test_boxes_stay_float32_under_autocast() -> None:
    """Refinement adds to the inverse sigmoid of a box: in bfloat16 a step of half a pixel of 224 would be lost."""
    model, source = decoder().float(), memory()
    source = dataclasses.replace(source, tokens=source.tokens.float(), valid_ratios=source.valid_ratios.float())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(source)
    assert out.boxes.dtype == out.proposal_boxes.dtype == torch.float32
    coarse = out.boxes.bfloat16().float()
    assert (coarse != out.boxes).float().mean() > 0.9  # more than eight bits are there


def test_start_of_training() -> None:
    model = LocDecoder(
        num_classes=2, num_queries=5, dim=DIM, heads=2, levels=2, points=2, ffn_dim=8, layers=2,
        box_temperature=1e4, tie_box_heads=False,
    )  # fmt: skip
    source = memory()
    out = model(dataclasses.replace(source, tokens=source.tokens.float(), valid_ratios=source.valid_ratios.float()))
    assert torch.allclose(out.boxes[0], out.proposal_boxes, atol=1e-5)  # heads begin at "no change"
    assert torch.allclose(out.boxes[1], out.proposal_boxes, atol=1e-5)
    for head in (model.class_head, model.proposal_class):
        assert torch.allclose(head.bias, torch.full((2,), -math.log(99)))
    xavier = [model.query_embed, model.memory_proj, model.proposal_proj, model.position_head[0]]
    xavier += [model.layers[1].ffn.linear1, model.layers[1].ffn.linear2, model.layers[1].self_attention.out_proj]
    for part in xavier:
        limit = math.sqrt(6 / sum(part.weight.shape))  # of the uniform distribution
        assert 0.8 * limit < part.weight.abs().max() <= limit
