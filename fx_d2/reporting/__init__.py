"""Reports of runs: our results next to the paper's, comparisons, curves, and galleries of errors."""

from fx_d2.reporting.document import Document, write_document
from fx_d2.reporting.paper import PaperTable, read_paper
from fx_d2.reporting.report import ReportOptions, build_report
from fx_d2.reporting.runs import Run, read_runs

__all__ = [
    "Document",
    "PaperTable",
    "ReportOptions",
    "Run",
    "build_report",
    "read_paper",
    "read_runs",
    "write_document",
]
