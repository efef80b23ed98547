"""Pictures of truth beside prediction."""

from fx_d2.visualization.draw import draw_comparison
from fx_d2.visualization.findings import Findings, class_colors, predicted_findings, truth_findings

__all__ = ["Findings", "class_colors", "draw_comparison", "predicted_findings", "truth_findings"]
