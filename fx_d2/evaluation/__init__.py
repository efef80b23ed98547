"""Metrics for the three tasks, the evaluation loop, saved predictions and scores, and result tables."""

from fx_d2.evaluation.classification import ClassificationEvaluator
from fx_d2.evaluation.common import weights_hash
from fx_d2.evaluation.evaluator import Evaluation, build_evaluators, evaluate_model, metric_names
from fx_d2.evaluation.image_scores import read_scores, scores_spec
from fx_d2.evaluation.localization import LocalizationEvaluator
from fx_d2.evaluation.operating_points import build_thresholds, read_points, write_points
from fx_d2.evaluation.options import MetricOptions
from fx_d2.evaluation.paired import Paired, paired_differences
from fx_d2.evaluation.predictions import prediction_record, read_all_predictions, read_predictions
from fx_d2.evaluation.ranking import auroc
from fx_d2.evaluation.report import per_class_table, results_table, write_results
from fx_d2.evaluation.segmentation import SegmentationEvaluator, dice

__all__ = [
    "ClassificationEvaluator",
    "Evaluation",
    "LocalizationEvaluator",
    "MetricOptions",
    "Paired",
    "SegmentationEvaluator",
    "auroc",
    "build_evaluators",
    "build_thresholds",
    "dice",
    "evaluate_model",
    "metric_names",
    "paired_differences",
    "per_class_table",
    "prediction_record",
    "read_all_predictions",
    "read_points",
    "read_predictions",
    "read_scores",
    "results_table",
    "scores_spec",
    "weights_hash",
    "write_points",
    "write_results",
]
