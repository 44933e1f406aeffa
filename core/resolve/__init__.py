"""Resolve a job on this machine: find its model, GPU and files, and let its profile choose.

Reads the disk and, for a model that is only on the Hub, the network; writes nothing.
"""

from core.resolve.exact import estimate_to_compare, request_to_trace
from core.resolve.files import dataset_path
from core.resolve.jobs import (
    PastRunsOf,
    RowsOf,
    default_fields,
    no_past_runs,
    reference_of,
    resolve,
)
from core.resolve.resolved import ResolvedJob

__all__ = [
    "PastRunsOf",
    "ResolvedJob",
    "RowsOf",
    "dataset_path",
    "default_fields",
    "estimate_to_compare",
    "jobs",
    "no_past_runs",
    "reference_of",
    "request_to_trace",
    "resolve",
]
