"""Soft Dice against a loop over pixels."""

import math

import pytest
import torch

from fx_d2.losses import dice_loss

Problem = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def problem() -> Problem:
    """Class 2 is known in no image, class 1 only in image 0; a tenth of the pixels is to be ignored."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    masks = (torch.rand(2, 3, 4, 5) > 0.5).double()
    known = torch.tensor([[True, True, False], [True, False, False]])
    return logits, masks, known, torch.rand(2, 4, 5) > 0.2


def brute(
    logits: torch.Tensor, masks: torch.Tensor, known: torch.Tensor, valid: torch.Tensor, per_class: bool
) -> float:
    groups = [[0], [1], [2]] if per_class else [[0, 1, 2]]
    losses = []
    for classes in groups:
        overlap = total = 0.0
        for b in range(2):
            for c in classes:
                for y in range(4):
                    for x in range(5):
                        if known[b, c] and valid[b, y, x]:
                            p = 1 / (1 + math.exp(-logits[b, c, y, x].item()))
                            t = masks[b, c, y, x].item()
                            overlap, total = overlap + p * t, total + p + t
        if known[:, classes].any():
            losses.append(1 - (2 * overlap + 1) / (total + 1))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("per_class", [True, False])
def test_equals_the_loop(per_class: bool) -> None:
    inputs = problem()
    assert dice_loss(*inputs, per_class=per_class).item() == pytest.approx(brute(*inputs, per_class=per_class))


def test_per_class_and_batch_differ() -> None:
    inputs = problem()
    assert dice_loss(*inputs, per_class=True).item() != pytest.approx(dice_loss(*inputs, per_class=False).item())


@pytest.mark.parametrize("per_class", [True, False])
def test_ignored_pixels_and_unknown_classes_do_not_matter(per_class: bool) -> None:
    logits, masks, known, valid = problem()
    hidden = ~(known[:, :, None, None] & valid[:, None])
    loss = dice_loss(logits, masks, known, valid, per_class)
    other = dice_loss(torch.where(hidden, 9.0, logits), torch.where(hidden, 1 - masks, masks), known, valid, per_class)
    assert loss.item() == other.item()
    loss.backward()
    assert logits.grad is not None and ((logits.grad == 0) == hidden).all()


@pytest.mark.parametrize("per_class", [True, False])
def test_nothing_known_is_zero_with_a_graph(per_class: bool) -> None:
    logits, masks, known, valid = problem()
    loss = dice_loss(logits, masks, torch.zeros_like(known), valid, per_class)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.abs().max() == 0


def test_an_absent_class_is_not_an_unknown_one() -> None:
    """An all-zero mask that was annotated pushes the prediction down."""
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    seen = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool)
    loss = dice_loss(logits, torch.zeros(1, 1, 2, 2), *seen, per_class=True)
    loss.backward()
    assert loss.item() == pytest.approx(1 - 1 / 3) and logits.grad is not None and (logits.grad > 0).all()


def test_smooth_is_a_parameter() -> None:
    logits, masks, known, valid = problem()
    values = {s: dice_loss(logits, masks, known, valid, False, smooth=s).item() for s in (0.1, 1.0)}
    assert values[0.1] > values[1.0]


def test_half_precision_sums_are_float32() -> None:
    """In bfloat16 a sum of 40 000 halves would stop growing at 128."""
    logits = torch.zeros(1, 1, 200, 200, dtype=torch.bfloat16)
    seen = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 200, 200, dtype=torch.bool)
    loss = dice_loss(logits, torch.ones(1, 1, 200, 200), *seen, per_class=False)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1 / 3, abs=1e-3)
    # Neither side is rounded: a probability of 0.73 in bfloat16 is wrong by 1 in 1000.
    logits, masks = torch.full((1, 1, 200, 200), 1.0), torch.rand(1, 1, 200, 200).bfloat16()
    want = dice_loss(logits, masks.float(), *seen, per_class=False)
    assert dice_loss(logits.bfloat16(), masks, *seen, per_class=False) == want
