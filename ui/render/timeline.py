"""The memory inside one step as an SVG, from the loading to the save. Only draws."""

from collections.abc import Sequence
from html import escape
from itertools import groupby

from core.memory import TimelinePoint
from core.wording import PHASES, gib

WIDTH, HEIGHT, HEADROOM, LETTER = 600, 150, 16, 6


def timeline(moments: Sequence[TimelinePoint]) -> str:
    """Allocated bytes, operation by operation, phase by phase; hovering tells where in the model a moment is.

    What is there all the time, most of it weights, is cut off below, and the axis says so.
    """
    sizes = [size for phase, _, size in moments if phase != "load"]
    low, high = min(sizes) * 0.98, max(sizes)
    across, down = WIDTH / len(moments), (HEIGHT - HEADROOM) / max(1.0, high - low)
    tops = [HEIGHT - max(0.0, size - low) * down for _, _, size in moments]
    outline = " ".join(f"{index * across:.1f},{top:.1f}" for index, top in enumerate(tops))
    touched = "".join(
        f'<rect x="{index * across:.1f}" y="0" width="{across:.2f}" height="{HEIGHT}">'
        f"<title>{escape(label)}: {gib(size)} GiB</title></rect>"
        for index, (_, label, size) in enumerate(moments)
    )
    marks = "".join(
        f'<line x1="{start * across:.1f}" x2="{start * across:.1f}" y1="0" y2="{HEIGHT}"/>'
        f'<text x="{start * across + 3:.1f}" y="11">{PHASES.get(phase, escape(phase)) if wide else ""}</text>'
        for phase, start, wide in _stretches(moments)
    )
    said = f"Allocated memory, operation by operation: from {gib(low)} GiB, what is always there, to {gib(high)} GiB."
    return (
        f'<svg class="timeline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f'<polygon points="0,{HEIGHT} {outline} {WIDTH},{HEIGHT}"/>{marks}{touched}</svg><p class="notice">{said}</p>'
    )


def _stretches(moments: Sequence[TimelinePoint]) -> list[tuple[str, int, bool]]:
    """(phase, where it begins, whether there is room for its name) of each stretch of one phase."""
    found, start = [], 0
    for phase, stretch in groupby(moments, key=lambda moment: moment[0]):
        length = len(list(stretch))
        found.append(
            (
                phase,
                start,
                length * WIDTH / len(moments) > LETTER * len(PHASES.get(phase, phase)) + 6,
            )
        )
        start += length
    return found
