"""Box maths against torchvision and by hand."""

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from fx_d2.layers.boxes import INVERSE_SIGMOID_EPS, generalized_iou, inverse_sigmoid, to_centre_size, to_corners


def random_corners(count: int) -> torch.Tensor:
    low = torch.rand(count, 2, dtype=torch.float64)
    return torch.cat((low, low + torch.rand(count, 2, dtype=torch.float64) + 0.01), dim=1)


def test_conversions_equal_torchvision() -> None:
    corners = random_corners(20).view(4, 5, 4)
    centre = box_convert(corners, "xyxy", "cxcywh")
    assert torch.allclose(to_centre_size(corners), centre)
    assert torch.allclose(to_corners(centre), corners)


def test_generalized_iou_equals_torchvision_for_all_pairs() -> None:
    torch.manual_seed(0)
    a, b = random_corners(7), random_corners(9)
    a[0], b[0] = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([5.0, 5.0, 6.0, 7.0])  # far apart
    a[1] = b[1]  # the same box
    ours = generalized_iou(to_centre_size(a[:, None]), to_centre_size(b[None]))
    assert torch.allclose(ours, generalized_box_iou(a, b), atol=1e-12)
    assert ours[0, 0] < 0 and ours[1, 1] == pytest.approx(1)


def test_generalized_iou_broadcasts_over_leading_axes() -> None:
    a, b = random_corners(6).view(2, 3, 4), random_corners(8).view(2, 4, 4)
    ours = generalized_iou(to_centre_size(a[:, :, None]), to_centre_size(b[:, None]))
    assert ours.shape == (2, 3, 4)
    for i in range(2):
        assert torch.allclose(ours[i], generalized_box_iou(a[i], b[i]))


def test_eps_is_added_to_both_divisors() -> None:
    a, b = torch.tensor([0.5, 0.5, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])  # shared 1/4, union 7/4, hull 9/4
    assert generalized_iou(a, b, eps=0.25).item() == pytest.approx(0.25 / 2.0 - 0.5 / 2.5)


def test_the_gradient_of_generalized_iou_is_torchvision_s() -> None:
    torch.manual_seed(1)
    a, b = (to_centre_size(random_corners(30)).requires_grad_() for _ in range(2))
    ours = torch.autograd.grad(generalized_iou(a, b).sum(), (a, b))
    theirs = torch.autograd.grad(generalized_box_iou(to_corners(a), to_corners(b)).diag().sum(), (a, b))
    assert all(torch.allclose(x, y, atol=1e-10) for x, y in zip(ours, theirs, strict=True))


def test_generalized_iou_of_empty_boxes_is_finite_with_finite_gradients() -> None:
    a = torch.zeros(2, 4, requires_grad=True)
    b = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.3, 0.3, 0.2, 0.2]])
    overlap = generalized_iou(a, b)
    overlap.sum().backward()
    assert overlap.isfinite().all() and a.grad is not None and a.grad.isfinite().all()


def test_generalized_iou_with_something_added_to_the_areas() -> None:
    a, b = torch.tensor([0.1, 0.05, 0.2, 0.1]), torch.tensor([0.2, 0.05, 0.2, 0.1])
    inter, union, hull, eps = 0.01, 0.03, 0.03, 1e-3
    assert generalized_iou(a, b, eps).item() == pytest.approx(inter / (union + eps) - (hull - union) / (hull + eps))


def test_inverse_sigmoid_inverts_and_is_bounded() -> None:
    x = torch.linspace(INVERSE_SIGMOID_EPS, 1 - INVERSE_SIGMOID_EPS, 50, dtype=torch.float64)
    assert torch.allclose(inverse_sigmoid(x).sigmoid(), x)
    # The reference clamps numerator and denominator one by one, so the ends are log(1e-3 / 1), not logit(1e-3).
    limit = torch.tensor(1e-3, dtype=torch.float64).log()
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64))
    assert torch.allclose(ends, torch.stack((limit, limit, -limit, -limit)))
