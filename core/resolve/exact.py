"""Exact check of a job: what of it is traced, and the estimate to compare that with."""

from dataclasses import replace

from core.memory import MemoryEstimate
from core.memory.trace_check import TraceRequest, uncompiled
from core.resolve.resolved import ResolvedJob


def request_to_trace(resolved: ResolvedJob) -> TraceRequest:
    """Return what to trace: like the estimate, with rows no longer than they are known to be.

    Of several devices the first is traced.
    """
    job, rows = resolved.job, resolved.rows
    if rows and rows.max_tokens and not job.packing:
        longest = min(job.max_length, rows.max_tokens)
        job = job.model_copy(update={"max_length": longest})
    return TraceRequest(job, resolved.model.config, resolved.gpu)


def estimate_to_compare(resolved: ResolvedJob) -> MemoryEstimate:
    """Return the estimate of the step that is traced, which is never compiled.

    Raises SpecError for an unknown architecture.
    """
    return replace(resolved, job=uncompiled(resolved.job)).estimate()
