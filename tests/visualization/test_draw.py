from __future__ import annotations

import numpy as np
import pytest

from fx_d2.structures import DatasetSpec, FXError
from fx_d2.visualization import Findings, class_colors, draw_comparison
from fx_d2.visualization import draw as module
from fx_d2.visualization.page import FILL

SPEC = DatasetSpec(
    name="toy",
    title="Toy",
    cls_classes=("nodule", "effusion"),
    loc_classes=("heart", "nodule"),
    seg_classes=("heart", "lung"),
)


def film(height: int, width: int) -> np.ndarray:
    """A grey ramp."""
    return np.linspace(20, 230, height * width).reshape(height, width).astype(np.uint8)


def findings(height: int, width: int, scores: bool) -> Findings:
    mask = np.zeros((height, width), bool)
    mask[height // 2 : height * 3 // 4, width // 4 : width // 2] = True
    box = np.array([[0.1 * width, 0.1 * height, 0.4 * width, 0.3 * height]])
    return Findings(
        labels=(0.83, 0.1) if scores else (1.0, None),
        boxes=box,
        classes=np.array([1]),
        scores=np.array([0.66]) if scores else None,
        masks=(mask, np.zeros((height, width), bool)),
    )


def draw(height: int, width: int) -> np.ndarray:
    return draw_comparison(film(height, width), SPEC, findings(height, width, False), findings(height, width, True))


def panel(picture: np.ndarray, height: int, width: int, right: bool = False) -> np.ndarray:
    scale = module.PANEL / max(height, width)
    h, w = round(height * scale), round(width * scale)
    x = module.GAP + right * (w + module.GAP)
    return picture[module.HEADER : module.HEADER + h, x : x + w].astype(int)


@pytest.mark.parametrize("size", [(224, 224), (2000, 2000), (1500, 2000), (2000, 1200)])
def test_every_size_gives_the_same_panel_and_a_grey_background(size: tuple[int, int]) -> None:
    picture = draw(*size)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    for right in (False, True):
        shown = panel(picture, *size, right=right)
        assert max(shown.shape[:2]) == module.PANEL
        height, width = shown.shape[:2]
        untouched = shown[int(0.8 * height) :, int(0.55 * width) :]
        assert (untouched == untouched[..., :1]).all()
        expected = np.interp(0.9, [0, 1], [20, 230])
        row = shown[int(0.9 * height), int(0.6 * width), 0]
        assert abs(row - expected) < 5


@pytest.mark.parametrize("size", [(224, 224), (2000, 2000)])
def test_boxes_and_masks_are_drawn_where_they_are(size: tuple[int, int]) -> None:
    shown = panel(draw(*size), *size)
    colors = {name: 255 * np.array(color) for name, color in class_colors(SPEC).items()}
    edge = shown[int(0.2 * module.PANEL), int(0.1 * module.PANEL) - 4 : int(0.1 * module.PANEL) + 4]
    assert np.abs(edge - colors["nodule"]).max(axis=1).min() < 12
    outline = shown[int(0.6 * module.PANEL), int(0.25 * module.PANEL) - 4 : int(0.25 * module.PANEL) + 4]
    assert np.abs(outline - colors["heart"]).max(axis=1).min() < 60
    inside = shown[int(0.65 * module.PANEL), int(0.4 * module.PANEL)]
    grey = film(*size)[int(0.65 * size[0]), int(0.4 * size[1])]
    expected = (1 - FILL) * grey + FILL * colors["heart"]
    assert np.abs(inside - expected).max() < 4
    between = shown[int(0.2 * module.PANEL), int(0.25 * module.PANEL)]
    assert between[0] == between[1] == between[2]  # boxes are not filled


def test_the_picture_of_an_image_without_anything() -> None:
    spec = DatasetSpec(name="t", title="T", cls_classes=("a",))
    picture = draw_comparison(film(50, 80), spec, Findings(), Findings(labels=(0.5,)))
    shown = panel(picture, 50, 80)
    assert (shown == shown[..., :1]).all()


def test_a_wide_image_keeps_its_text_and_a_thin_structure_is_seen() -> None:
    spec = DatasetSpec(name="t", title="T", cls_classes=tuple(f"class {i}" for i in range(30)), seg_classes=("line",))
    line = np.zeros((300, 3000), bool)
    line[100, 10:2900] = True
    truth = Findings(labels=(None,) * 30, masks=(line,))
    picture = draw_comparison(film(300, 3000), spec, truth, Findings(labels=(0.5,) * 30, masks=(None,)))
    assert picture.shape[0] > 30 * module.ROW
    shown = panel(picture, 300, 3000)
    assert (shown != shown[..., :1]).any()


def test_drawing_twice_gives_the_same_picture() -> None:
    assert (draw(224, 300) == draw(224, 300)).all()


def test_wrong_images_and_findings_are_refused() -> None:
    good = findings(50, 80, True)
    for image in (np.zeros((50, 80, 3), np.uint8), np.zeros((50, 80), np.uint16)):
        with pytest.raises(FXError, match="grey uint8"):
            draw_comparison(image, SPEC, Findings(), good)
    with pytest.raises(FXError, match="mask of size"):
        draw_comparison(film(60, 80), SPEC, Findings(), good)
    with pytest.raises(FXError, match="3 values for 2 cls_classes"):
        draw_comparison(film(50, 80), SPEC, Findings(), Findings(labels=(0.1, 0.2, 0.3)))
    with pytest.raises(FXError, match="box class 2 for 2 loc_classes"):
        draw_comparison(film(50, 80), SPEC, Findings(), Findings(boxes=np.zeros((1, 4)), classes=np.array([2])))
