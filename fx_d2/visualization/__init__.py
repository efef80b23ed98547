"""Figures: ground truth next to predictions, predictions alone, and contact sheets of training samples."""

from fx_d2.visualization.draw import draw_comparison
from fx_d2.visualization.findings import (
    Findings,
    class_colors,
    predicted_findings,
    training_findings,
    truth_findings,
)
from fx_d2.visualization.overlay import draw_prediction
from fx_d2.visualization.sheet import Cell, draw_sheet

__all__ = [
    "Cell",
    "Findings",
    "class_colors",
    "draw_comparison",
    "draw_prediction",
    "draw_sheet",
    "predicted_findings",
    "training_findings",
    "truth_findings",
]
