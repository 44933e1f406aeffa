"""Exact check as HTML: the traced peaks beside the estimated ones, phase by phase."""

from core.memory import MemoryEstimate
from core.memory.trace_check import TraceResult
from core.wording import TRACED_HEADS, memory, trace_sentence, trace_verdict, traced_rows
from ui.render import notice, table


def side_by_side(
    estimate: MemoryEstimate,
    traced: TraceResult,
    compiled: MemoryEstimate | None = None,
    num_devices: int = 1,
) -> str:
    """Return both peaks of each phase.

    `compiled` is the estimate of the same job with compiled layers, if the job has them.
    """
    sentences = [trace_sentence(traced, num_devices), trace_verdict(estimate, traced)]
    if compiled:
        peak = memory(compiled.peak_allocated_bytes)
        sentences.append(f"Neither has compiled layers; compiled, the estimate is {peak}.")
    said = notice(" ".join(sentences), "plain")
    return f'<div class="measured">{table(traced_rows(estimate, traced), TRACED_HEADS)}{said}</div>'
