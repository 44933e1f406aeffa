"""Memory during one step as an SVG, from loading to saving. Only draws."""

from collections.abc import Sequence
from html import escape
from itertools import groupby

from core.memory import MemoryEstimate, TimelinePoint
from core.wording import PHASE_TITLES, gib, memory, memory_parts

WIDTH, HEIGHT = 600, 150
HEADROOM = 16
"""Pixels above the highest moment, for the names of the phases."""
LETTER_WIDTH = 6
NO_TENSORS = ("fragmentation", "cuda_context")
"""Components that no tensor of a step takes."""


def timeline(moments: Sequence[TimelinePoint], estimate: MemoryEstimate) -> str:
    """Return allocated bytes, operation by operation. Hovering says where in the model each is.

    The axis starts near the lowest value after loading, mostly weights, and says so. The sentence
    below leads from the peak of the tensors to the total of the verdict.
    """
    sizes = [size for phase, _label, size in moments if phase != "load"]
    low, high = min(sizes) * 0.98, max(sizes)
    step = WIDTH / len(moments)
    down = (HEIGHT - HEADROOM) / max(1.0, high - low)
    outline, targets = [], []
    for index, (_phase, label, size) in enumerate(moments):
        left = index * step
        outline.append(f"{left:.1f},{HEIGHT - max(0.0, size - low) * down:.1f}")
        targets.append(
            f'<rect x="{left:.1f}" y="0" width="{step:.2f}" height="{HEIGHT}">'
            f"<title>{escape(label)}: {gib(size)} GiB</title></rect>"
        )
    said = f"Allocated memory during one step: always {memory(low)}, {memory(high)} at the peak. "
    said += _rest(estimate)
    return (
        f'<svg class="timeline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f'<polygon points="0,{HEIGHT} {" ".join(outline)} {WIDTH},{HEIGHT}"/>'
        f'{_phase_marks(moments)}{"".join(targets)}</svg><p class="notice">{said}</p>'
    )


def _rest(estimate: MemoryEstimate) -> str:
    """Return what the verdict counts beside the tensors of a step."""
    parts = [
        f"{part.title} {memory(part.bytes)}"
        for part in memory_parts(estimate)
        if part.component in NO_TENSORS or part.may_leave_card
    ]
    return f"The verdict, {memory(estimate.total_bytes)}, adds {', '.join(parts)}."


def _phase_marks(moments: Sequence[TimelinePoint]) -> str:
    """Return a line where each phase begins, with its name if there is room."""
    marks, start = "", 0
    for phase, stretch in groupby(moments, key=lambda moment: moment[0]):
        length = len(list(stretch))
        left = start * WIDTH / len(moments)
        marks += f'<line x1="{left:.1f}" x2="{left:.1f}" y1="0" y2="{HEIGHT}"/>'
        name = PHASE_TITLES.get(phase, phase)
        if length * WIDTH / len(moments) > LETTER_WIDTH * (len(name) + 1):
            marks += f'<text x="{left + 3:.1f}" y="11">{escape(name)}</text>'
        start += length
    return marks
