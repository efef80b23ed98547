"""Contact sheets."""

from __future__ import annotations

import numpy as np
import pytest

from fx_d2.structures import DatasetSpec, FXError
from fx_d2.visualization import Cell, Findings, class_colors, draw_sheet
from fx_d2.visualization import sheet as module

SPEC = DatasetSpec(
    name="toy",
    title="Toy",
    cls_classes=("nodule", "effusion", "mass"),
    loc_classes=("heart", "nodule"),
    seg_classes=("heart", "lung"),
)


def cell(**found: object) -> Cell:
    return Cell(np.full((112, 224), 90, np.uint8), Findings(**found), "a.png")


def area(picture: np.ndarray, i: int, height: int) -> np.ndarray:
    """The i-th image of a sheet of two columns whose cells are `height` apart."""
    x = module.GAP + i % 2 * (module.CELL + module.GAP)
    y = module.HEADER + i // 2 * height
    return picture[y : y + module.CELL // 2, x : x + module.CELL].astype(int)


def test_images_stay_grey_and_findings_are_drawn_in_their_colour() -> None:
    mask = np.zeros((112, 224), bool)
    mask[20:80, 20:100] = True
    box = np.array([[120.0, 30.0, 200.0, 90.0]])
    cells = [cell(labels=(1.0, None, 0.6)), cell(boxes=box, classes=np.array([1])), cell(masks=(mask, None))]
    picture = draw_sheet(cells, SPEC, title="t", columns=2)
    height = (picture.shape[0] - module.HEADER) // 2
    plain, boxed, masked = (area(picture, i, height) for i in range(3))
    assert (plain == 90).all()
    colors = class_colors(SPEC)
    scale = module.CELL / 224
    edge = boxed[round(60 * scale), round(200 * scale) - 2 : round(200 * scale) + 3]
    assert np.abs(edge - 255 * np.array(colors["nodule"])).sum(axis=1).min() < 60
    inside = masked[round(50 * scale), round(60 * scale)]
    assert np.abs(inside - (0.82 * 90 + 0.18 * 255 * np.array(colors["heart"]))).max() <= 2
    assert (masked[round(100 * scale), round(200 * scale)] == 90).all()


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ({"labels": (1.0, None, 0.6)}, ["nodule", "mass 0.60", "1 of 3 labels unknown"]),
        ({"labels": (0.0, 0.0, 0.0)}, ["no label present"]),
        ({"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int)}, ["annotated, no boxes"]),
        ({"masks": (np.ones((112, 224), bool), None)}, ["heart", "1 of 2 masks unknown"]),
        ({"masks": (np.zeros((112, 224), bool),) * 2}, ["masks are empty"]),
    ],
)
def test_lines_below_an_image(found: dict[str, object], lines: list[str]) -> None:
    assert [text for text, _ in module._lines(cell(**found), SPEC)] == ["a.png", *lines]


def test_masks_that_are_not_named_are_counted() -> None:
    spec = DatasetSpec(name="ribs", title="Ribs", seg_classes=tuple(f"R{i}" for i in range(1, 21)))
    lines = module._lines(cell(masks=(np.ones((112, 224), bool),) * 20), spec)
    assert [text for text, _ in lines] == ["a.png", *(f"R{i}" for i in range(1, 7)), "14 more masks"]


def test_nothing_to_draw() -> None:
    with pytest.raises(FXError, match="no image to draw"):
        draw_sheet([], SPEC, title="t")
