"""Checks: what a model could do before a training and after it. Asks no model itself.

A suite holds tests; core/workers/checks lets a model answer them; the results say what was lost
and gained.
"""

from core.runs.checks.identity import Identity, held_out_suite, identity_suite
from core.runs.checks.library import find_suite, folders_of, names_in, with_whole_paths
from core.runs.checks.results import CheckCount, Outcome, PerplexityResult, SuiteResult
from core.runs.checks.thresholds import read_thresholds

__all__ = [
    "CheckCount",
    "Identity",
    "Outcome",
    "PerplexityResult",
    "SuiteResult",
    "find_suite",
    "folders_of",
    "held_out_suite",
    "identity_suite",
    "lm_tasks",
    "names_in",
    "read_thresholds",
    "sentences",
    "statistics",
    "with_whole_paths",
]
