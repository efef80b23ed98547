"""The picture of a prediction without truth."""

import numpy as np
import pytest

from fx_d2.structures import DatasetSpec, FXError
from fx_d2.visualization import Findings, class_colors, draw, draw_prediction
from fx_d2.visualization.overlay import REACHED
from fx_d2.visualization.page import Page

SPEC = DatasetSpec(
    name="toy",
    title="Toy",
    cls_classes=("nodule", "effusion"),
    loc_classes=("heart", "nodule"),
    seg_classes=("heart", "lung"),
)


def film(height: int, width: int) -> np.ndarray:
    return np.linspace(20, 230, height * width).reshape(height, width).astype(np.uint8)


def findings(height: int, width: int) -> Findings:
    mask = np.zeros((height, width), bool)
    mask[height // 2 : height * 3 // 4, width // 4 : width // 2] = True
    box = np.array([[0.1 * width, 0.1 * height, 0.4 * width, 0.3 * height]])
    empty = np.zeros((height, width), bool)
    return Findings((0.83, 0.1), box, np.array([1]), np.array([0.66]), (mask, empty))


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the next picture."""
    written: list[str] = []
    real = Page.text

    def text(self: Page, text: str, *place: float, **style: object) -> None:
        written.append(text)
        real(self, text, *place, **style)  # type: ignore[arg-type]

    monkeypatch.setattr(Page, "text", text)
    return written


@pytest.mark.parametrize("size", [(224, 224), (3000, 2500), (500, 900)])
def test_the_film_is_untouched_beside_its_findings(size: tuple[int, int]) -> None:
    picture = draw_prediction(film(*size), SPEC, findings(*size)).astype(int)
    scale = draw.PANEL / max(size)
    height, width = round(size[0] * scale), round(size[1] * scale)
    left = picture[draw.HEADER : draw.HEADER + height, draw.GAP : draw.GAP + width]
    right = picture[draw.HEADER : draw.HEADER + height, 2 * draw.GAP + width : 2 * draw.GAP + 2 * width]
    assert (left == left[..., :1]).all() and np.ptp(left) > 200
    colors = class_colors(SPEC)
    for name in ("heart", "nodule"):
        near = np.abs(right - np.round(255 * np.array(colors[name]))).max(-1) < 12
        assert near.sum() > 400, f"{name} is drawn"
    assert (right[int(0.8 * height) :] == left[int(0.8 * height) :]).all(), "nothing where nothing was found"


def test_probabilities_operating_points_boxes_and_areas_are_listed(words: list[str]) -> None:
    draw_prediction(film(100, 100), SPEC, findings(100, 100), thresholds={"nodule": 0.83, "effusion": 0.2}, caption="a")
    assert words.count(REACHED) == 2, "one class and the line that explains the mark"
    place = {word: words.index(word) for word in ("0.83", "0.10", "effusion", "6.2 %", "nodule 0.66")}
    assert place["0.83"] < place["effusion"] < place["0.10"] < place["6.2 %"]
    assert words[-1] == "research use only   a" and "lung" not in words and "prediction: student" in words


def test_without_boxes_and_masks_there_is_one_panel(words: list[str]) -> None:
    both = draw_prediction(film(100, 100), SPEC, findings(100, 100))
    labels = draw_prediction(film(100, 100), SPEC, Findings((0.83, 0.1)), which="teacher")
    assert labels.shape[1] == both.shape[1] - draw.PANEL - draw.GAP
    assert "image; prediction: teacher" in words and REACHED not in words
    none = Findings(boxes=np.zeros((0, 4)), classes=np.zeros(0, np.int64), scores=np.zeros(0))
    draw_prediction(film(100, 100), SPEC, none)
    assert "none predicted" in words


def test_what_does_not_belong_together_is_named() -> None:
    with pytest.raises(FXError, match="2 values for 1 cls_classes"):
        one = DatasetSpec(name="one", title="One", cls_classes=("a",))
        draw_prediction(film(100, 100), one, findings(100, 100))
    with pytest.raises(FXError, match=r"mask of size \(90, 100\)"):
        draw_prediction(film(100, 100), SPEC, findings(90, 100))
