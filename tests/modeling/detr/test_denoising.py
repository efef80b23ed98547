"""Noised truth: values, layout, mask, and its known assignment."""

import pytest
import torch

from fx_d2.layers.boxes import inverse_sigmoid, to_centre_size, to_corners
from fx_d2.losses import Targets
from fx_d2.modeling.detr.denoising import NoisedQueries, denoising_match, noise_targets

COUNTS = (2, 0, 3)
WIDTH, QUERIES, CLASSES = 3, 5, 4


def targets(counts: tuple[int, ...] = COUNTS) -> Targets:
    torch.manual_seed(0)
    centres, sides = 0.4 + 0.2 * torch.rand(sum(counts), 2), 0.1 + 0.1 * torch.rand(sum(counts), 2)
    return Targets.of_batch(torch.randint(0, CLASSES, (sum(counts),)), torch.cat((centres, sides), 1), counts)


def noise(truth: Targets, pairs: int = 7, label: float = 0.0, box: float = 0.0) -> NoisedQueries:
    return noise_targets(truth, num_queries=QUERIES, num_classes=CLASSES, pairs=pairs, label_noise=label, box_noise=box)


def grid(x: torch.Tensor, noised: NoisedQueries) -> torch.Tensor:
    """(B, P, ...) as (B, groups, 2, T, ...)."""
    return x.unflatten(1, (noised.groups, 2, -1))


def test_without_noise_every_copy_is_the_truth() -> None:
    truth = targets()
    noised = noise(truth)
    assert noised.groups == 7 // WIDTH
    real = grid(noised.real, noised)
    for image, count in enumerate(COUNTS):
        assert real[image, ..., :count].all() and not real[image, ..., count:].any()
        for slot in range(count):
            box = sum(COUNTS[:image]) + slot
            assert (grid(noised.labels, noised)[image, ..., slot] == truth.labels[box]).all()
            want = inverse_sigmoid(truth.boxes[box]).expand(noised.groups, 2, 4)
            assert torch.allclose(grid(noised.references, noised)[image, :, :, slot], want, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_positives_stay_near_and_negatives_go_further(scale: float) -> None:
    truth = targets()
    noised = noise(truth, pairs=300, box=scale)
    boxes = grid(noised.references, noised)[2].sigmoid()  # groups, 2, T, 4
    origin = to_corners(truth.boxes[-3:])
    half = (truth.boxes[-3:, 2:] / 2).repeat(1, 2)
    moved = (to_corners(boxes) - origin).abs() / half / scale
    # A negative that turned inside out lost its size in the logit: its corners say nothing.
    whole = (boxes[..., 2:] > 2e-3).all(-1)
    positive, negative = moved[:, 0][whole[:, 0]], moved[:, 1][whole[:, 1]]
    assert positive.max() <= 1.02 and positive.max() > 0.9 and positive.min() < 0.1
    assert negative.min() >= 0.98 and negative.max() <= 2.02 and negative.max() > 1.8
    shifts = to_corners(boxes[:, 0]) - origin
    assert (shifts > 0).any(0).all() and (shifts < 0).any(0).all()


def test_queries_are_float32_whatever_the_truth_is() -> None:
    truth = targets()
    wide = Targets.of_batch(truth.labels, truth.boxes.double(), truth.counts)
    found = []
    for boxes in (truth, wide):
        torch.manual_seed(3)
        found.append(noise(boxes, label=0.5, box=1.0).references)
    assert found[0].dtype == found[1].dtype == torch.float32 and torch.equal(*found)


def test_boxes_stay_in_the_image() -> None:
    truth = Targets.of_batch(torch.zeros(1, dtype=torch.int64), torch.tensor([[0.05, 0.95, 0.1, 0.1]]), (1,))
    boxes = noise(truth, pairs=200, box=1.0).references
    assert boxes.isfinite().all()
    corners = to_corners(boxes.sigmoid())
    assert corners.min() > -2e-3 and corners.max() < 1 + 2e-3
    assert torch.allclose(to_centre_size(corners), boxes.sigmoid(), atol=1e-6)


def test_half_of_the_label_noise_redraws_over_all_classes() -> None:
    truth = Targets.of_batch(torch.tensor([2]), torch.full((1, 4), 0.5), (1,))
    labels = noise(truth, pairs=4000, label=0.5).labels.flatten()
    assert set(labels.tolist()) == set(range(CLASSES))
    # A quarter is redrawn, and a quarter of those hits the old class again.
    assert (labels != 2).float().mean().item() == pytest.approx(0.25 * 3 / 4, abs=0.03)


def test_the_mask_hides_groups_from_each_other_and_from_the_learned_queries() -> None:
    noised = noise(targets())
    size, total = 2 * WIDTH, noised.groups * 2 * WIDTH
    assert noised.blocked.shape == (total + QUERIES, total + QUERIES) and noised.blocked.dtype == torch.bool
    for i in range(total + QUERIES):
        for j in range(total + QUERIES):
            if j >= total:
                want = False  # everyone sees the learned queries
            elif i >= total:
                want = True  # which see no truth
            else:
                want = i // size != j // size
            assert noised.blocked[i, j].item() == want


def test_groups_are_at_least_one_and_shrink_with_many_boxes() -> None:
    assert noise(targets((1,)), pairs=7).groups == 7
    assert noise(targets((9,)), pairs=7).groups == 1


def test_a_batch_without_boxes_gets_one_dummy_group() -> None:
    noised = noise(targets((0, 0)), pairs=1, label=0.5, box=1.0)
    assert noised.groups == 1 and noised.labels.shape == (2, 2) and not noised.real.any()
    assert noised.references.shape == (2, 2, 4) and noised.references.isfinite().all()
    assert len(denoising_match(targets((0, 0)), noised, 3).query) == 0


def test_no_pairs_means_no_query() -> None:
    noised = noise(targets(), pairs=0)
    assert noised.groups == 0 and noised.labels.shape == (3, 0) and noised.references.shape == (3, 0, 4)
    assert noised.blocked.shape == (QUERIES, QUERIES) and not noised.blocked.any()


def test_positives_answer_for_their_own_box() -> None:
    truth = targets()
    noised = noise(truth)
    match = denoising_match(truth, noised, layers=2)
    queries = noised.labels.shape[1]
    row, query = match.query // queries, match.query % queries
    layer, image = row // len(COUNTS), row % len(COUNTS)
    found = list(zip(layer.tolist(), image.tolist(), query.tolist(), match.target.tolist(), strict=True))
    want = {
        (layer, image, group * 2 * WIDTH + slot, sum(COUNTS[:image]) + slot)
        for layer in range(2)
        for image, count in enumerate(COUNTS)
        for group in range(noised.groups)
        for slot in range(count)
    }
    assert set(found) == want and len(found) == len(want)
    assert noised.real[image, query].all()
    assert torch.allclose(noised.references[image, query].sigmoid(), truth.boxes[match.target], atol=1e-5)
