"""The canvas."""

from __future__ import annotations

import numpy as np

from fx_d2.structures import DatasetSpec
from fx_d2.visualization import Findings, class_colors
from fx_d2.visualization.page import Box, Page

SPEC = DatasetSpec(name="toy", title="Toy", loc_classes=("heart", "nodule"))


def test_the_best_of_two_boxes_in_one_place_is_seen() -> None:
    for scores, best in ((np.array([0.9, 0.4]), "heart"), (np.array([0.4, 0.9]), "nodule")):
        both = Findings(boxes=np.array([[20.0, 20.0, 180.0, 180.0]] * 2), classes=np.array([0, 1]), scores=scores)
        page = Page(np.zeros((200, 200, 3), np.uint8))
        page.boxes(both, SPEC, class_colors(SPEC), Box(0, 0, 200, 200), 1.0)
        lower_edge = page.render()[180, 60:160].astype(int)
        assert (np.abs(lower_edge - np.round(255 * np.array(class_colors(SPEC)[best]))) < 40).all()


def test_labels_do_not_lie_on_each_other() -> None:
    boxes = np.array([[20.0, 20.0, 180.0, 180.0]] * 4)
    many = Findings(boxes=boxes, classes=np.zeros(4, int), scores=np.linspace(0.9, 0.6, 4))
    canvas = np.zeros((800, 800, 3), np.uint8)
    page = Page(canvas)
    page.boxes(many, SPEC, class_colors(SPEC), Box(0, 0, 800, 800), 3.0)
    places = page._labels
    assert len(places) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(places) for b in places[:i])
    assert all(0 <= p.x0 and p.x1 <= 800 and 0 <= p.y0 and p.y1 <= 800 for p in places)
