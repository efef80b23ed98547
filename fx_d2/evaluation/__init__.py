"""Metrics of the three tasks, the evaluation loop, saved predictions and the report."""

from fx_d2.evaluation.classification import ClassificationEvaluator, auroc
from fx_d2.evaluation.evaluator import build_evaluators, evaluate_model
from fx_d2.evaluation.localization import LocalizationEvaluator
from fx_d2.evaluation.predictions import prediction_record, read_predictions
from fx_d2.evaluation.report import per_class_table, results_table, write_results
from fx_d2.evaluation.segmentation import SegmentationEvaluator, dice

__all__ = [
    "ClassificationEvaluator",
    "LocalizationEvaluator",
    "SegmentationEvaluator",
    "auroc",
    "build_evaluators",
    "dice",
    "evaluate_model",
    "per_class_table",
    "prediction_record",
    "read_predictions",
    "results_table",
    "write_results",
]
