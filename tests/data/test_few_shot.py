"""Which images a few-shot training draws."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fx_d2.data.few_shot import draw_images
from fx_d2.structures import FXError


def images(patients: list[str], unknown: tuple[int, ...] = (), dataset: str = "films") -> list[dict[str, Any]]:
    """Dicts of images of these patients; those in `unknown` have no masks."""
    return [
        {"dataset": dataset, "image_id": i, "patient_id": patient, "annotated": {"loc": True, "seg": i not in unknown}}
        for i, patient in enumerate(patients)
    ]


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30), st.integers(0, 5), st.randoms())
def test_draws_are_nested_and_ask_every_patient_before_one_is_asked_again(
    patients: list[str], seed: int, random: Any
) -> None:
    dicts = images(patients)
    draws = [draw_images(dicts, ["seg"], count, seed) for count in range(1, len(dicts) + 1)]
    for count, draw in enumerate(draws, 1):
        assert len(set(draw)) == count and draw == sorted(draw)
        assert count == 1 or set(draws[count - 2]) < set(draw)
        turns = np.unique([patients[i] for i in draw], return_counts=True)[1]
        left = {patients[i] for i in range(len(dicts)) if i not in draw}
        asked = {patients[i] for i in draw}
        assert turns.max() == 1 or not left - asked
    # The order of the file does not matter.
    shuffled = random.sample(dicts, len(dicts))
    half = len(dicts) // 2 + 1
    again = (
        {shuffled[i]["image_id"] for i in draw_images(shuffled, ["seg"], half, seed)} if half <= len(dicts) else set()
    )
    assert again == ({dicts[i]["image_id"] for i in draws[half - 1]} if half <= len(dicts) else set())


def test_seed_and_dataset_change_the_draw() -> None:
    patients = [str(i) for i in range(100)]
    draws = {tuple(draw_images(images(patients), ["seg"], 10, seed)) for seed in range(20)}
    assert len(draws) == 20
    other = draw_images(images(patients, dataset="other"), ["seg"], 10, 0)
    assert other != draw_images(images(patients), ["seg"], 10, 0)


def test_every_image_is_as_likely_as_another() -> None:
    dicts = images([str(i) for i in range(20)])
    counts = np.bincount([i for seed in range(2000) for i in draw_images(dicts, ["seg"], 5, seed)], minlength=20)
    # 2000 draws of 5 of 20: 500 times each, with a deviation of 19.4.
    assert abs(counts - 500).max() < 5 * 19.4


def test_only_images_annotated_for_every_task_are_drawn() -> None:
    dicts = images(list("abcd"), unknown=(1, 2))
    assert draw_images(dicts, ["loc", "seg"], 2, 0) == [0, 3]
    with pytest.raises(FXError, match="FEW_SHOT.IMAGES is 3: 'films' has 2 training images annotated for loc and seg"):
        draw_images(dicts, ["loc", "seg"], 3, 0)
    for count in (-1, 0):
        with pytest.raises(FXError, match=f"FEW_SHOT.IMAGES is {count}"):
            draw_images(dicts, ["loc"], count, 0)
    with pytest.raises(FXError, match="FEW_SHOT.IMAGES is 1"):
        draw_images([], ["loc"], 1, 0)


def test_a_draw_stays_what_it_is() -> None:
    """Published numbers name a seed: another release of this code must draw the same images."""
    dicts = images(list("aabbccdd"))
    assert [draw_images(dicts, ["seg"], count, 0) for count in (1, 3, 6)] == [[6], [1, 2, 6], [0, 1, 2, 4, 6, 7]]
