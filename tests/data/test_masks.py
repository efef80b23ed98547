"""Run-length codes: what is encoded decodes, and a broken code is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.masks import decode_masks, encode_mask, mask_problem, rle_problem
from fx_d2.structures import FXError


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (300, 200)])
def test_round_trip_without_a_problem(shape: tuple[int, int], density: float) -> None:
    mask = np.random.default_rng(0).random(shape) < density
    rle = encode_mask(mask)
    assert rle_problem(rle, *shape) == ""
    np.testing.assert_array_equal(decode_masks([rle], "here")[:, :, 0], mask)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_chosen_pixels(density: float) -> None:
    """Rows and columns may be left out or repeated."""
    masks = np.random.default_rng(0).random((3, 40, 60)) < density
    rows, columns = np.array([0, 0, 3, 17, 39]), np.array([5, 6, 6, 6, 50, 59])
    picked = decode_masks([encode_mask(mask) for mask in masks], "here", rows, columns)
    np.testing.assert_array_equal(picked, masks[:, rows[:, None], columns].transpose(1, 2, 0))


def test_long_runs() -> None:
    mask = np.zeros((3000, 2500), dtype=bool)
    mask[1000:2000, 500:2000] = True
    assert rle_problem(encode_mask(mask), 3000, 2500) == ""


@pytest.mark.parametrize("counts", ["", "0", "zzzz", "PP1", "Zd`0", "\u00e9", "#", "P" * 30])
def test_broken_codes(counts: str) -> None:
    assert "broken run-length code" in rle_problem({"size": [40, 60], "counts": counts}, 40, 60)


@pytest.mark.parametrize("counts", ["2O", "q"])
def test_a_broken_code_whose_runs_add_up(counts: str) -> None:
    """Runs 2 and -1, and a character beyond the code's 64 whose low bits are a 1."""
    assert rle_problem({"size": [1, 1], "counts": "1"}, 1, 1) == ""
    assert "broken run-length code" in rle_problem({"size": [1, 1], "counts": counts}, 1, 1)


def test_every_cut_of_a_code_is_noticed() -> None:
    rle = encode_mask(np.random.default_rng(1).random((40, 60)) < 0.3)
    for length in range(len(rle["counts"])):
        assert rle_problem(rle | {"counts": rle["counts"][:length]}, 40, 60)


def test_wrong_kinds() -> None:
    assert "size" in rle_problem(encode_mask(np.ones((4, 5))), 5, 4)
    assert "not a compressed RLE" in rle_problem({"size": [1, 1], "counts": [1]}, 1, 1)
    assert "not a compressed RLE" in rle_problem([[1, 2, 3, 4]], 1, 1)
    assert "not a compressed RLE" in mask_problem(5, 1, 1)
    with pytest.raises(FXError, match="shape"):
        encode_mask(np.ones((2, 3, 1)))
    with pytest.raises(FXError, match="here"):
        decode_masks([{"size": [40, 60], "counts": "Zd`0"}], "here")
