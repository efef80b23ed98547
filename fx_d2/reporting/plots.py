"""Plots: metrics over passes, training curves, FROC, reliability."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import figure, ticker

from fx_d2.evaluation.matching import FALSE_POSITIVES
from fx_d2.evaluation.report import HEADLINES, LABELS, WHICH
from fx_d2.reporting.baselines import title_of
from fx_d2.reporting.document import Figure, slug
from fx_d2.structures import TASKS

COLORS = {"student": "#1f6fb4", "teacher": "#d1701f"}
MARKERS = {"student": "o", "teacher": "s"}

_SVG_POINTS = 600
"""Number of points up to which a plot is smaller as SVG than as PNG."""

_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "lines.linewidth": 1.1,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fx_d2",
}


def metric_plots(
    history: Sequence[Mapping[str, Any]], slots: Sequence[tuple[str, str]], passes: int, run: str
) -> list[Figure]:
    """A plot per dataset and task: its headline metric after every evaluated pass, for student and teacher.

    Filled markers: the pass had trained on this dataset ("focused"); hollow markers: on another one ("unfocused"). A
    star marks the best value of a model.

    Args:
        history: lines of evaluations.jsonl; no plots for fewer than two.
        slots: pairs (dataset, task) that were trained.
        passes: passes per cycle.
        run: name of the run.
    """
    if len(history) < 2:
        return []
    x = [line["cycle"] * passes + line["pass"] + 1 for line in history]
    found = []
    for dataset, task in sorted(slots, key=lambda slot: TASKS.index(slot[1])):
        curves = {which: _curve(history, f"{which}/{dataset}/{task}/{HEADLINES[task][0]}") for which in WHICH}
        curves = {which: y for which, y in curves.items() if any(not math.isnan(v) for v in y)}
        if curves:
            focused = [line["dataset"] == dataset for line in history]
            found.append(_metric_plot(dataset, task, run, x, curves, focused))
    return found


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    values = (line["metrics"].get(key) for line in history)
    return [math.nan if value is None else 100 * value for value in values]


def _metric_plot(
    dataset: str, task: str, run: str, x: list[int], curves: Mapping[str, list[float]], focused: list[bool]
) -> Figure:
    with matplotlib.rc_context(_STYLE):
        fig = figure.Figure(figsize=(3.5, 2.3), layout="constrained")
        axes = fig.add_subplot(xlabel="passes", ylabel="%", title=f"{title_of(dataset)}: {LABELS[HEADLINES[task][0]]}")
        words = []
        for which, y in curves.items():
            color = COLORS[which]
            axes.plot(x, y, color=color, alpha=0.55, label=which)
            for kind, face in ((True, color), (False, "white")):
                points = [(a, b) for a, b, f in zip(x, y, focused, strict=True) if f is kind]
                at, values = zip(*points, strict=True) if points else ((), ())
                axes.plot(at, values, MARKERS[which], color=color, markerfacecolor=face, markersize=3.2)
            best = max(range(len(y)), key=lambda i: -math.inf if math.isnan(y[i]) else y[i])
            axes.plot(x[best], y[best], "*", color=color, markersize=9, markeredgecolor="black", markeredgewidth=0.4)
            last = max(i for i, value in enumerate(y) if not math.isnan(value))
            words.append(f"{which} {y[last]:.1f} after pass {x[last]}, best {y[best]:.1f} after pass {x[best]}")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        low, high = axes.get_ylim()
        if high - low < 1:  # do not magnify the noise of a flat curve
            axes.set_ylim(max(0.0, low - 0.5), high + 0.5)
        axes.plot([], [], "o", color="#555", markersize=3.2, label="focused")
        axes.plot([], [], "o", color="#555", markerfacecolor="white", markersize=3.2, label="unfocused")
        axes.legend(ncols=2)
        alt = f"{LABELS[HEADLINES[task][0]]} of {title_of(dataset)} over {x[-1]} passes: {'; '.join(words)}."
        return _embed(fig, f"passes-{run}-{dataset}-{task}", alt, ("; ".join(words),), sum(map(len, curves.values())))


def training_plots(steps: Sequence[Mapping[str, Any]], slots: Sequence[tuple[str, str]], run: str) -> list[Figure]:
    """Losses and gradient norms of each task, one line per dataset, and the learning rate, over iterations.

    Args:
        steps: lines of metrics.json.
        slots: pairs (dataset, task) that were trained.
        run: name of the run.
    """
    found = []
    for name, title in (("total_loss", "loss"), ("grad_norm", "gradient norm before clipping")):
        for task in TASKS:
            curves = {title_of(d): _points(steps, f"{d}/{t}/{name}") for d, t in slots if t == task}
            found += _lines(curves, f"{title}: {task}", f"{name}-{run}-{task}", log=True)
    return found + _lines({"value": _points(steps, "lr")}, "largest learning rate", f"lr-{run}", log=False)


def _points(steps: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    pairs = [(line["iteration"], line[key]) for line in steps if isinstance(line.get(key), int | float)]
    return [i for i, _ in pairs], [v for _, v in pairs]


def _lines(curves: Mapping[str, tuple[list[int], list[float]]], title: str, key: str, *, log: bool) -> list[Figure]:
    curves = {name: pair for name, pair in curves.items() if len(pair[0]) > 1}
    if not curves:
        return []
    with matplotlib.rc_context(_STYLE):
        fig = _figure(2.3, curves)
        axes = fig.add_subplot(xlabel="iteration", title=title)
        for i, (name, (x, y)) in enumerate(curves.items()):
            axes.plot(x, y, **_line(i), label=name)
        if log and all(v > 0 for _, y in curves.values() for v in y):
            axes.set_yscale("log")
        if len(curves) > 1:
            fig.legend(loc="outside lower center", ncols=_legend_columns(curves), fontsize=6)
        ends = "; ".join(f"{name} from {y[0]:.3g} to {y[-1]:.3g}" for name, (_, y) in curves.items())
        return [_embed(fig, key, f"{title} over iterations: {ends}.", (), sum(len(x) for x, _ in curves.values()))]


def froc_plot(curves: Mapping[str, Mapping[str, Sequence[float]]], split: str, key: str) -> Figure:
    """Sensitivity over false positives per image, one line per class.

    Args:
        curves: class -> curve, as in the details of results.json.
        split: name of the split for the title.
        key: key of the figure.
    """
    with matplotlib.rc_context(_STYLE):
        fig = _figure(2.3, curves)
        axes = fig.add_subplot(xlabel="false positives per image", ylabel="sensitivity", title=f"{split}: FROC")
        for i, (name, curve) in enumerate(curves.items()):
            x, y = list(curve["false_positives"]), list(curve["sensitivity"])
            # A step starts where its rate is reached; the last sensitivity extends to the right edge.
            end = max(x[-1], FALSE_POSITIVES[-1])
            axes.step([*x, end], [*y, y[-1]], where="post", **_line(i), label=name)
        axes.set_xscale("log", base=2)
        axes.set_xlim(FALSE_POSITIVES[0], FALSE_POSITIVES[-1])
        axes.set_xticks(FALSE_POSITIVES, [f"{rate:g}" for rate in FALSE_POSITIVES])
        axes.set_ylim(-0.02, 1.02)
        fig.legend(loc="outside lower center", ncols=_legend_columns(curves), fontsize=6)
        last = FALSE_POSITIVES[-1]
        reached = {
            name: max(s for s, f in zip(curve["sensitivity"], curve["false_positives"], strict=True) if f <= last)
            for name, curve in curves.items()
        }
        ends = ", ".join(f"{name} {value:.2f}" for name, value in reached.items())
        points = sum(len(curve["sensitivity"]) for curve in curves.values())
        alt = f"FROC curves of {split}. Sensitivity at up to {last:g} false positives per image: {ends}."
        return _embed(fig, key, alt, (), points)


def reliability_plot(diagrams: Mapping[str, Mapping[str, Sequence[float | None]]], split: str, key: str) -> Figure:
    """Fraction present over mean probability per bin, one line per class. Arguments as in `froc_plot`."""
    with matplotlib.rc_context(_STYLE):
        fig = _figure(2.5, diagrams)
        axes = fig.add_subplot(xlabel="mean probability", ylabel="fraction present", title=f"{split}: reliability")
        axes.plot([0, 1], [0, 1], color="#999", linestyle=":", linewidth=1)
        for i, (name, bins) in enumerate(diagrams.items()):
            rows = zip(bins["score"], bins["positive"], bins["images"], strict=True)
            x, y, n = zip(*[(s, p, n) for s, p, n in rows if s is not None], strict=True)
            axes.plot(x, y, **_line(i), linewidth=0.8, label=name)
            # The area of a point grows with the fraction of the images in its bin.
            axes.scatter(x, y, s=[4 + 40 * v / sum(n) for v in n], color=_line(i)["color"], clip_on=False)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        fig.legend(loc="outside lower center", ncols=_legend_columns(diagrams), fontsize=6)
        alt = f"Reliability diagrams of {split}: {', '.join(diagrams)}; calibration errors are in the class table."
        return _embed(fig, key, alt, (), sum(len(bins["images"]) for bins in diagrams.values()))


def _figure(height: float, names: Collection[str]) -> figure.Figure:
    """A figure whose axes keep their height, in inches, above a legend with these names."""
    rows = math.ceil(len(names) / _legend_columns(names))
    return figure.Figure(figsize=(3.5, height + 0.12 * rows), layout="constrained")


def _legend_columns(names: Collection[str]) -> int:
    return 3 if max(map(len, names)) <= 16 else 2


def _line(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th line; up to forty are distinct."""
    return {"color": matplotlib.colormaps["tab10"](i % 10), "linestyle": ("-", "--", ":", "-.")[i // 10 % 4]}


def _embed(fig: figure.Figure, key: str, alt: str, caption: tuple[str, ...], points: int) -> Figure:
    """The plot as SVG, or as PNG if it has too many points; without a date or software name, for reproducible files."""
    stream = io.BytesIO()
    width, height = (round(96 * side) for side in fig.get_size_inches())
    if points <= _SVG_POINTS:
        fig.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        kind = "svg+xml"
    else:
        fig.savefig(stream, format="png", dpi=192, metadata={"Software": None})
        kind = "png"
    uri = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return Figure(key=slug(key), uri=uri, alt=alt, caption=caption, width=width, height=height)
