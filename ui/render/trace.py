"""Exact check as HTML: the traced peaks beside the estimated ones, phase by phase."""

from core.memory import MemoryEstimate
from core.memory.trace_check import TraceResult
from core.wording import PHASE_TITLES, gib, memory
from ui.render import notice, table

AGREES = 0.02
"""Largest difference at which the estimate counts as right: tests hold it to that."""


def side_by_side(
    estimate: MemoryEstimate, traced: TraceResult, compiled: MemoryEstimate | None = None
) -> str:
    """Return both peaks of each phase.

    `compiled` is the estimate of the same job with compiled layers, if the job has them.
    """
    estimated_phases = {str(phase): size for phase, size in estimate.phases.items()}
    traced_phases = {str(phase): size for phase, size in traced.phases.items()}
    rows = [
        _row(title, estimated_phases.get(phase, 0), traced_phases[phase])
        for phase, title in PHASE_TITLES.items()
        if traced_phases.get(phase)
    ]
    rows.append(_row("Reserved", estimate.peak_reserved_bytes, traced.peak_reserved_bytes))
    heads = ("estimated GiB", "traced GiB", "difference")
    sentences = [trace_sentence(traced), _verdict(estimate, traced)]
    if compiled:
        peak = memory(compiled.peak_allocated_bytes)
        sentences.append(f"Neither has compiled layers; compiled, the estimate is {peak}.")
    said = notice(" ".join(sentences), "plain")
    return f'<div class="measured">{table(rows, heads)}{said}</div>'


def trace_sentence(traced: TraceResult) -> str:
    """Return what the trace did, in a sentence."""
    peak = memory(traced.peak_allocated_bytes)
    return f"Traced one training step without data in {traced.seconds:.0f} s: {peak} at the peak."


def _verdict(estimate: MemoryEstimate, traced: TraceResult) -> str:
    miss = abs(estimate.peak_allocated_bytes / traced.peak_allocated_bytes - 1)
    if miss <= AGREES:
        return "The estimate agrees."
    return f"The estimate is off by {miss:.1%}: rely on the trace."


def _row(title: str, estimated: int, traced: int) -> tuple[str, ...]:
    if not estimated:
        return title, "–", gib(traced, 3), ""
    difference = f"{estimated / traced - 1:+.1%}"
    if difference.strip("+-") == "0.0%":
        difference = "0.0%"
    return title, gib(estimated, 3), gib(traced, 3), difference
