"""The exact check as HTML: what the trace found beside what was estimated, phase by phase."""

from core.memory import MemoryEstimate
from core.memory.trace_check import TraceResult
from core.wording import PHASES, gib, memory
from ui.render import notice

CLOSE = 0.02
"""A difference that is none: what the trace and the estimate are held to agree within."""


def side_by_side(
    estimated: MemoryEstimate, traced: TraceResult, compiled: MemoryEstimate | None = None
) -> str:
    """Both peaks of each phase. `compiled` is the estimate of the same job with compiled layers, if it has them."""
    guesses = {str(phase): size for phase, size in estimated.phases.items()}
    peaks = {str(phase): size for phase, size in traced.phases.items()}
    rows = [
        (title, guesses.get(phase, 0), peaks[phase])
        for phase, title in PHASES.items()
        if peaks.get(phase)
    ]
    rows.append(("Reserved", estimated.peak_reserved_bytes, traced.peak_reserved_bytes))
    lines = "".join(
        f"<tr><th>{title}</th><td>{gib(guess, 3) if guess else '–'}</td><td>{gib(found, 3)}</td>"
        f"<td>{_difference(guess, found)}</td></tr>"
        for title, guess, found in rows
    )
    heads = "<tr><th></th><th>estimated GiB</th><th>traced GiB</th><th>off by</th></tr>"
    miss = abs(estimated.peak_allocated_bytes / traced.peak_allocated_bytes - 1)
    verdict = (
        "The estimate agrees."
        if miss <= CLOSE
        else f"The estimate is {miss:.1%} off: trust the trace."
    )
    if compiled:
        peak = memory(compiled.peak_allocated_bytes)
        verdict += f" Both are of layers that are not compiled; compiled, they take {peak} by the estimate."
    return f'<div class="measured"><table>{heads}{lines}</table>{notice(f"{told(traced)} {verdict}", "plain")}</div>'


def told(traced: TraceResult) -> str:
    """What the trace did, in a sentence."""
    peak, seconds = memory(traced.peak_allocated_bytes), f"{traced.seconds:.0f} s"
    return f"One step on tensors without data, in {seconds}: {peak} at the peak."


def _difference(guess: int, found: int) -> str:
    if not guess:
        return ""
    share = f"{guess / found - 1:+.1%}"
    return "0.0%" if share.strip("+-") == "0.0%" else share
