"""Sine encodings against the formula written out."""

import math

import pytest
import torch

from fx_d2.layers.position_encoding import encode_boxes, encode_positions


def sines(value: float, features: int, temperature: float) -> list[float]:
    out = []
    for k in range(features):
        angle = value / temperature ** (2 * (k // 2) / features)
        out.append(math.sin(angle) if k % 2 == 0 else math.cos(angle))
    return out


def test_positions_follow_the_formula_also_with_padding() -> None:
    valid = torch.ones(2, 3, 5, dtype=torch.bool)
    valid[1, 2:] = False
    valid[1, :, 3:] = False
    got = encode_positions(valid, 8, 20.0, torch.float64)
    assert got.shape == (2, 3, 5, 8) and got.dtype == torch.float64
    for image, (rows, columns) in enumerate(((3, 5), (2, 3))):
        for y in range(rows):
            for x in range(columns):
                want = sines((y + 1) / (rows + 1e-6) * 2 * math.pi, 4, 20.0)
                want += sines((x + 1) / (columns + 1e-6) * 2 * math.pi, 4, 20.0)
                assert got[image, y, x].tolist() == pytest.approx(want, abs=1e-6)
    assert got.isfinite().all()
    # As in the reference: computed in float32 whatever is asked for.
    assert torch.equal(got, encode_positions(valid, 8, 20.0, torch.float32).double())


def test_padding_does_not_move_the_image() -> None:
    alone = encode_positions(torch.ones(1, 2, 3, dtype=torch.bool), 8, 20.0, torch.float32)
    padded = torch.zeros(1, 4, 6, dtype=torch.bool)
    padded[:, :2, :3] = True
    assert torch.allclose(encode_positions(padded, 8, 20.0, torch.float32)[:, :2, :3], alone, atol=1e-6)


def test_boxes_follow_the_formula_in_the_order_y_x_w_h() -> None:
    boxes = torch.rand(2, 3, 4, dtype=torch.float64)
    got = encode_boxes(boxes, 8, 10000.0)
    assert got.shape == (2, 3, 16)
    for row, box in zip(got.flatten(0, 1), boxes.flatten(0, 1).tolist(), strict=True):
        cx, cy, w, h = box
        want = [v for value in (cy, cx, w, h) for v in sines(value * 2 * math.pi, 4, 10000.0)]
        assert row.tolist() == pytest.approx(want, abs=1e-6)
