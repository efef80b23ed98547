"""Prediction for an image without ground truth: the plain image, and next to it the image with the findings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fx_d2.structures import DatasetSpec
from fx_d2.visualization.column import Row
from fx_d2.visualization.draw import draw_panels
from fx_d2.visualization.findings import Findings, class_colors
from fx_d2.visualization.page import DIM

REACHED, ABOVE = "\N{BLACK UP-POINTING TRIANGLE}", (1.0, 0.85, 0.3)
"""Mark of a class whose probability reaches its operating point, and the colour of the mark."""


def draw_prediction(
    image: np.ndarray,
    spec: DatasetSpec,
    prediction: Findings,
    *,
    which: str = "student",
    thresholds: Mapping[str, float] | None = None,
    caption: str = "",
) -> np.ndarray:
    """Draw the plain image and, if boxes or masks were predicted, again with them; list class probabilities.

    Args:
        image: uint8 (H, W), grey.
        spec: dataset row (`DatasetSpec`), for names and colours.
        prediction: the output of the model; a task that is None is not listed.
        which: "student" or "teacher", for the header.
        thresholds: class -> operating point, drawn as a line on the bar, with a mark if the probability reaches it.
        caption: text of the footer, such as the file name.

    Returns:
        uint8 (H', W', 3) RGB. Raises FXError for another kind of image, or labels, boxes or masks that do not fit.
    """
    rows = _label_rows(spec, prediction, thresholds or {})
    found = _class_rows(spec, prediction)
    rows += [Row("")] * bool(rows and found) + found
    title = f"prediction: {which}"
    panels = [("image", Findings()), (title, prediction)] if found else [(f"image; {title}", Findings())]
    return draw_panels(image, spec, panels, rows, caption)


def _label_rows(spec: DatasetSpec, prediction: Findings, thresholds: Mapping[str, float]) -> list[Row]:
    if prediction.labels is None:
        return []
    rows = [Row("class, probability", color=DIM)]
    for name, value in zip(spec.cls_classes, prediction.labels, strict=False):
        assert value is not None, "a model predicts every class"
        tick = thresholds.get(name)
        # A blank mark keeps the names aligned.
        mark = REACHED if tick is not None and value >= tick else " " * bool(thresholds)
        rows.append(Row(name, f"{value:.2f}", mark=mark, mark_color=ABOVE, bar=value, tick=tick))
    if thresholds:
        rows.append(Row("reaches its operating point (line)", mark=REACHED, mark_color=ABOVE, color=DIM))
    return rows


def _class_rows(spec: DatasetSpec, prediction: Findings) -> list[Row]:
    """Number of boxes and mask area (percent of the image) of each class that has any."""
    if prediction.boxes is None and prediction.masks is None:
        return []
    shares: dict[str, float] = {}
    if prediction.masks is not None:
        pairs = zip(spec.seg_classes, prediction.masks, strict=False)
        shares = {name: float(mask.mean()) for name, mask in pairs if mask is not None and mask.any()}
    counts = np.bincount([] if prediction.classes is None else prediction.classes, minlength=len(spec.loc_classes))
    boxes = dict(zip(spec.loc_classes, counts.tolist(), strict=False))
    heads = ["boxes" * (prediction.boxes is not None), "area" * (prediction.masks is not None)]
    rows = [Row("class", heads[1], middle=heads[0], color=DIM)]
    for name, color in class_colors(spec).items():
        if boxes.get(name) or name in shares:
            area = f"{100 * shares[name]:.1f} %" if name in shares else ""
            rows.append(Row(name, area, middle=str(boxes[name]) if boxes.get(name) else "", swatch=color))
    return rows if len(rows) > 1 else [*rows, Row("none predicted", color=DIM)]
