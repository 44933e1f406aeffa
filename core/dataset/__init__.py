"""Datasets: imported, checked line by line, repaired, mixed for a run, previewed.

Plain JSON, line by line: what is accepted here is what the training program reads. Never changes a
file; each change writes another.
"""

from core.dataset.check import check_file, check_in_child, find_leak
from core.dataset.report import DatasetReport, NotRead, RowProblem, counted

__all__ = [
    "DatasetReport",
    "NotRead",
    "RowProblem",
    "check_file",
    "check_in_child",
    "counted",
    "find_leak",
    "formats",
    "intake",
    "preview",
    "reading",
    "report",
    "rewrite",
    "suggestions",
    "token_lengths",
]
