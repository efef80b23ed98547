from __future__ import annotations

import base64
import re
from typing import Any

from fx_d2.reporting import plots
from fx_d2.reporting.document import Figure
from fx_d2.reporting.plots import froc_plot, metric_plots, reliability_plot, training_plots


def svg(figure: Figure) -> str:
    head, _, data = figure.uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    return base64.b64decode(data).decode("utf-8")


def line(cycle: int, index: int, dataset: str, values: dict[str, float | None]) -> dict[str, Any]:
    metrics = {f"{which}/jsrt/seg/dice": value for which, value in values.items()}
    return {"iteration": 0, "cycle": cycle, "pass": index, "dataset": dataset, "task": "seg", "metrics": metrics}


HISTORY = [
    line(0, 0, "other", {"student": 0.2, "teacher": 0.1}),
    line(0, 1, "jsrt", {"student": 0.5, "teacher": None}),
    line(1, 0, "other", {"student": 0.4, "teacher": 0.3}),
]
SLOTS = [("jsrt", "seg"), ("other", "cls")]


def test_a_metric_over_passes() -> None:
    # The third pass of a cycle was not evaluated.
    (figure,) = metric_plots(HISTORY, SLOTS, 3, "run")  # nothing is known of the other dataset
    assert figure.alt == (
        "Dice of JSRT (SCR) over 4 passes: student 40.0 after pass 4, best 50.0 after pass 2; "
        "teacher 30.0 after pass 4, best 30.0 after pass 4."
    )
    text = svg(figure)
    assert {"focused", "unfocused", "student", "teacher", "passes"} <= set(re.findall(r">([a-z]+)</text>", text))
    assert not re.search(r">\d+\.5</text>", text.split("passes")[0]), "there is no half of a pass"
    assert figure == metric_plots(HISTORY, SLOTS, 3, "run")[0]  # no time, no chance
    assert metric_plots(HISTORY[:1], SLOTS, 3, "run") == []


def test_what_was_undefined_at_last_has_an_earlier_value() -> None:
    """A dataset that the last pass did not evaluate, or of which it defined nothing."""
    last = line(1, 1, "jsrt", {"student": None, "teacher": None})
    assert metric_plots([*HISTORY, last], SLOTS, 3, "run")[0].caption == (
        "student 40.0 after pass 4, best 50.0 after pass 2; teacher 30.0 after pass 4, best 30.0 after pass 4",
    )


def test_many_classes_can_be_told_apart() -> None:
    """As many as the largest public set of findings has, and more."""
    looks = {(str(look["color"]), look["linestyle"]) for look in map(plots._line, range(40))}
    assert len(looks) == 40


def test_losses_gradients_and_learning_rate() -> None:
    steps = [{"iteration": i, "jsrt/seg/total_loss": 1.0 / i, "jsrt/seg/grad_norm": 2.0, "lr": 0.1} for i in (1, 2)]
    steps.append({"iteration": 3, "other/cls/total_loss": 1.0})  # one point is no curve
    figures = training_plots(steps, SLOTS, "run")
    assert [figure.key for figure in figures] == ["total_loss-run-seg", "grad_norm-run-seg", "lr-run"]
    assert figures[0].alt == "loss: seg over iterations: JSRT (SCR) from 1 to 0.5."


def test_long_curves_are_pixels() -> None:
    steps = [{"iteration": i, "lr": 0.1 + i} for i in range(2000)]
    assert training_plots(steps, SLOTS, "run")[0].uri.startswith("data:image/png;base64,")


def test_free_response_and_reliability() -> None:
    curves = {"nodule": {"false_positives": [0.0, 0.5, 9.0], "sensitivity": [0.0, 0.75, 0.9]}}
    alt = "FROC curves of Own. Sensitivity at up to 8 false positives per image: nodule 0.75."
    assert froc_plot(curves, "Own", "k").alt == alt
    bins = {"a": {"images": [3.0, 0.0, 1.0], "score": [0.1, None, 0.9], "positive": [0.0, None, 1.0]}}
    figure = reliability_plot(bins, "Own", "k")
    assert "Own: reliability" in svg(figure) and figure.alt.startswith("Reliability diagrams of Own: a")
