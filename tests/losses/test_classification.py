"""Masked binary cross-entropy."""

import math

import pytest
import torch

from fx_d2.losses import classification_loss

NAN = math.nan


def test_mean_over_known_labels_only() -> None:
    logits = torch.tensor([[0.3, -2.0, 1.0], [4.0, 0.0, -1.0]], requires_grad=True)
    labels = torch.tensor([[1.0, NAN, 0.0], [NAN, 0.7, NAN]])
    loss = classification_loss(logits, labels)
    want = 0.0
    for z, t in ((0.3, 1.0), (1.0, 0.0), (0.0, 0.7)):
        p = 1 / (1 + math.exp(-z))
        want -= t * math.log(p) + (1 - t) * math.log(1 - p)
    assert loss.item() == pytest.approx(want / 3, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert ((logits.grad == 0) == labels.isnan() | ((logits == 0) & (labels == 0.5))).all()


def test_nothing_known_is_zero_with_a_graph() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = classification_loss(logits, torch.full((2, 3), NAN))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.abs().max() == 0


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits = torch.tensor([[50.0, -50.0]], dtype=torch.bfloat16)
    loss = classification_loss(logits, torch.tensor([[0.0, 1.0]]))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(50.0)


def test_a_float64_model_gets_a_float64_loss_of_float32_labels() -> None:
    labels = torch.tensor([[1.0, 0.0]])
    loss = classification_loss(torch.tensor([[0.3, -2.0]], dtype=torch.float64), labels)
    want = (math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(-2))) / 2
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(want, rel=1e-14)
