"""The set loss against a plain loop over layers and images."""

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from fx_d2.losses import Match, SetLossWeights, Targets, match_queries, set_losses
from fx_d2.losses import set_prediction as module

LAYERS, QUERIES, CLASSES = 3, 6, 4
WEIGHTS = SetLossWeights()
OTHER = SetLossWeights(0.7, 3.0, 1.5, 1.0, 2.0, 4.0, 0.6, 1.5)


def boxes_of(count: int) -> torch.Tensor:
    centre, size = torch.rand(count, 2, dtype=torch.float64), torch.rand(count, 2, dtype=torch.float64)
    return torch.cat((0.3 + 0.4 * centre, 0.1 + 0.3 * size), dim=1)


def problem(counts: tuple[int, ...] = (2, 0, 3)) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    torch.manual_seed(sum(counts))
    logits = torch.randn(LAYERS, len(counts), QUERIES, CLASSES, dtype=torch.float64, requires_grad=True)
    boxes = boxes_of(LAYERS * len(counts) * QUERIES).view(LAYERS, len(counts), QUERIES, 4).requires_grad_()
    return logits, boxes, Targets.of_batch(torch.randint(0, CLASSES, (sum(counts),)), boxes_of(sum(counts)), counts)


def corners(x: torch.Tensor) -> torch.Tensor:
    return box_convert(x, "cxcywh", "xyxy")


def naive_costs(
    logits: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor, truth: torch.Tensor, w: SetLossWeights
) -> torch.Tensor:
    """Deformable DETR's matching costs (queries, targets) of one image of one layer."""
    prob = logits.sigmoid()
    cost = torch.zeros(len(prob), len(labels), dtype=torch.float64)
    for q, t in itertools.product(range(len(prob)), range(len(labels))):
        p = prob[q, labels[t]]
        positive = w.focal_alpha * (1 - p) ** w.focal_gamma * -(p + 1e-8).log()
        negative = (1 - w.focal_alpha) * p**w.focal_gamma * -(1 - p + 1e-8).log()
        giou = generalized_box_iou(corners(boxes[q : q + 1]), corners(truth[t : t + 1]))[0, 0]
        l1 = (boxes[q] - truth[t]).abs().sum()
        cost[q, t] = w.cost_class * (positive - negative) + w.cost_l1 * l1 - w.cost_giou * giou
    return cost.detach()


def as_sets(match: Match, targets: Targets) -> set[tuple[int, ...]]:
    """(layer, image, query, target of the image)."""
    assert match.query.dtype == match.target.dtype == torch.int64
    found = set()
    for number, target in zip(match.query.tolist(), match.target.tolist(), strict=True):
        row, query = divmod(number, QUERIES)
        layer, image = divmod(row, len(targets.counts))
        assert targets.image[target] == image
        found.add((layer, image, query, targets.slot[target].item()))
    return found


@pytest.mark.parametrize("weights", [WEIGHTS, OTHER])
def test_losses_and_matching_equal_a_loop_over_layers_and_images(weights: SetLossWeights) -> None:
    logits, boxes, targets = problem()
    norm, want, pairs = 2.5, dict.fromkeys(("class", "l1", "giou"), 0.0), set()
    costs = module._costs(logits, boxes, targets, weights)
    for layer, image in itertools.product(range(LAYERS), range(len(targets.counts))):
        z, b, n = logits[layer, image], boxes[layer, image], targets.counts[image]
        mine = targets.image == image
        labels, truth = targets.labels[mine], targets.boxes[mine]
        assert len(labels) == n
        cost = naive_costs(z, b, labels, truth, weights)
        assert torch.allclose(costs[mine, layer], cost.T)  # which has no other trace than who is matched
        found = list(zip(*(x.tolist() for x in linear_sum_assignment(cost)), strict=True))
        pairs |= {(layer, image, q, t) for q, t in found}
        onehot = torch.zeros_like(z)
        for q, t in found:
            onehot[q, labels[t]] = 1
            want["l1"] += weights.loss_l1 * (b[q] - truth[t]).abs().sum().item() / norm
            overlap = generalized_box_iou(corners(b[q : q + 1]), corners(truth[t : t + 1])).item()
            want["giou"] += weights.loss_giou * (1 - overlap) / norm
        focal = sigmoid_focal_loss(z, onehot, weights.focal_alpha, weights.focal_gamma, reduction="sum").item()
        want["class"] += weights.loss_class * focal / norm
    match = match_queries(logits, boxes, targets, weights)
    assert as_sets(match, targets) == pairs and len(match.query) == LAYERS * targets.total
    got = set_losses(logits, boxes, targets, match, norm, weights)
    assert {k: v.sum().item() for k, v in got.items()} == pytest.approx(want)
    alone = set_losses(
        logits[:1], boxes[:1], targets, match_queries(logits[:1], boxes[:1], targets, weights), norm, weights
    )
    assert all(v.shape == (LAYERS,) and v[0].item() == pytest.approx(alone[k].item()) for k, v in got.items())


def test_each_target_gets_one_query_and_no_query_two_targets() -> None:
    logits, boxes, targets = problem((5, 6, 1))
    found = as_sets(match_queries(logits, boxes, targets, WEIGHTS), targets)
    assert {(a, b, d) for a, b, _, d in found} == {
        (layer, image, t) for layer in range(LAYERS) for image, n in enumerate(targets.counts) for t in range(n)
    }
    assert len({(a, b, c) for a, b, c, _ in found}) == len(found)


def test_more_targets_than_queries_uses_every_query() -> None:
    logits, boxes, targets = problem((9, 0))
    assert len(match_queries(logits, boxes, targets, WEIGHTS).query) == LAYERS * QUERIES


def test_a_batch_without_boxes_trains_the_background() -> None:
    logits, boxes, targets = problem((0, 0))
    assert targets.normalizer() == 1.0
    match = match_queries(logits, boxes, targets, WEIGHTS)
    assert as_sets(match, targets) == set()
    losses = set_losses(logits, boxes, targets, match, targets.normalizer(), WEIGHTS)
    background = sigmoid_focal_loss(logits, torch.zeros_like(logits), 0.25, 2.0, reduction="sum")
    assert losses["class"].sum().item() == pytest.approx(background.item())
    assert not losses["l1"].any() and not losses["giou"].any()
    sum(losses.values()).sum().backward()
    assert (logits.grad > 0).all()
    assert boxes.grad is not None and boxes.grad.abs().max() == 0


def test_box_losses_reach_matched_queries_only() -> None:
    logits, boxes, targets = problem()
    match = match_queries(logits, boxes, targets, WEIGHTS)
    losses = set_losses(logits, boxes, targets, match, 1.0, WEIGHTS)
    (losses["l1"] + losses["giou"]).sum().backward()
    touched = {tuple(i) for i in boxes.grad.abs().sum(-1).nonzero().tolist()}
    assert touched == {(a, b, c) for a, b, c, _ in as_sets(match, targets)} and logits.grad is None


def test_costs_that_are_not_finite_stop() -> None:
    logits, boxes, targets = problem()
    with torch.no_grad():
        boxes[1, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        match_queries(logits, boxes, targets, WEIGHTS)


def test_saturated_half_precision_predictions_stay_finite() -> None:
    targets = problem((2, 1))[2]
    logits = torch.full((1, 2, QUERIES, CLASSES), 100.0, dtype=torch.bfloat16, requires_grad=True)
    boxes = torch.zeros(1, 2, QUERIES, 4, dtype=torch.bfloat16, requires_grad=True)  # empty boxes in a corner
    match = match_queries(logits, boxes, targets, WEIGHTS)
    losses = set_losses(logits, boxes, targets, match, 1.0, WEIGHTS)
    sum(losses.values()).sum().backward()
    assert all(x.isfinite() for x in losses.values()) and logits.grad.isfinite().all() and boxes.grad.isfinite().all()


def test_the_eps_of_generalized_iou_reaches_loss_and_matching() -> None:
    logits, boxes, targets = problem()
    eps = SetLossWeights(cost_class=0.0, cost_l1=0.0, giou_eps=1e3)
    match = match_queries(logits, boxes, targets, WEIGHTS)
    plain, changed = (set_losses(logits, boxes, targets, match, 1.0, weights) for weights in (WEIGHTS, eps))
    assert torch.equal(plain["l1"], changed["l1"])
    # Far larger than any area, it leaves every overlap at 0: a loss of 2 for each of 5 boxes in 3 layers.
    assert changed["giou"].tolist() == pytest.approx([2 * 5] * LAYERS, rel=1e-2)
    assert not torch.allclose(plain["giou"], changed["giou"], rtol=1e-2)
    none = SetLossWeights(cost_class=0.0, cost_l1=0.0)
    found = [as_sets(match_queries(logits, boxes, targets, weights), targets) for weights in (eps, none)]
    assert found[0] != found[1]


def test_targets_know_their_places() -> None:
    targets = Targets.of_batch(torch.tensor([3, 1, 2]), boxes_of(3), (1, 0, 2))
    assert targets.total == 3 and targets.normalizer() == 3.0 and targets.width == 2
    assert targets.image.tolist() == [0, 2, 2] and targets.slot.tolist() == [0, 0, 1]
    none = Targets.of_batch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,))
    assert none.total == 0 and none.width == 1 and none.image.dtype == torch.int64 and none.image.shape == (0,)


@pytest.mark.parametrize(("others", "want"), [(5, 3.5), (0, 0.5)])
def test_the_normalizer_is_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch, others: int, want: float) -> None:
    targets = problem((2, 0) if others else (1, 0))[2]
    monkeypatch.setattr(module.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(others))
    # Of a single box in all, each of two processes divides by one half, so that their results average to the mean.
    assert targets.normalizer() == want
