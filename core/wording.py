"""Numbers and estimates as words, the same on the page and in the terminal. No layout."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from core.advise import Fix, Sharing
from core.memory import Component, MemoryEstimate
from core.memory.trace_check import TraceResult
from core.speed import Speed
from core.speed.doubling import MIN_GAIN

GIB, MIB = 2**30, 2**20
MARKUP = re.compile(r"[\\`*\[\]|]")
"""Characters that Markdown reads as more than themselves anywhere in a line."""
SMALL_UNCERTAINTY_BYTES = GIB / 20
"""A smaller uncertainty is not worth mentioning."""
NUM_LARGEST_PARTS = 3
SMALL_GAIN_OF_A_DEVICE = 0.8
"""Gain for each of several devices below which what they lose is said."""
SMALL_SLOWDOWN = 0.03
"""The same for a change of speed."""
AGREES = 0.02
"""Largest difference from a trace at which the estimate counts as right: tests hold it to that."""
TRACED_HEADS = ("estimated GiB", "traced GiB", "difference")
"""Titles of the columns of `traced_rows`, the first excepted."""
COMPONENT_COLOURS: Mapping[str, str] = {
    "weights": "#4477aa",
    "quantization_state": "#88aacc",
    "adapters": "#66ccee",
    "gradients": "#228833",
    "optimizer_states": "#ccbb44",
    "activations": "#ee6677",
    "logits": "#aa3377",
    "reference_model": "#332288",
    "value_model": "#44aa99",
    "reward_model": "#997700",
    "generation_cache": "#ffaabb",
    "temporary": "#cc8866",
    "cuda_context": "#999999",
    "fragmentation": "#bbbbbb",
}
"""Colour of each component, the same in page and report. From Paul Tol's palettes, which
colour-blind people can tell apart."""
PHASE_TITLES: Mapping[str, str] = {
    "load": "Load",
    "generation": "Generation",
    "forward": "Forward",
    "backward": "Backward",
    "optimizer_step": "Optimizer step",
    "eval": "Eval",
    "save": "Save",
}
"""Phase of the memory estimate -> title."""
MEASURED: Mapping[str, str] = {
    **PHASE_TITLES,
    "reserved": "Reserved by PyTorch",
    "card": "On the card",
    "process": "Whole process",
}
"""Peak that is compared -> title. Those of phases are what PyTorch has allocated."""


def gib(num_bytes: float, digits: int = 2) -> str:
    """Return 17.93."""
    return f"{num_bytes / GIB:.{digits}f}"


def memory(num_bytes: float) -> str:
    """Return 17.9 GiB or 340 MiB."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.1f} GiB"
    return f"{num_bytes / MIB:.0f} MiB"


def count(number: float) -> str:
    """Return 8.0B, 135M or 1,204."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            digits = 1 if number < 10 * size else 0
            return f"{number / size:.{digits}f}{letter}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Return 2 h 05 min, 42 min 10 s or 9 s."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {seconds:02d} s"
    return f"{seconds} s"


def rough_duration(seconds: float) -> str:
    """Return 42 min, 7.0 h or 3 days, which is as precise as a forecast."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{max(1, round(seconds / 60))} min"


def ago(when: float) -> str:
    """Return just now, 12 min ago, 5 h ago or 3 days ago for a moment in Unix seconds."""
    seconds = time.time() - when
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days ago"
    if seconds >= 3600:
        return f"{seconds / 3600:.0f} h ago"
    if seconds >= 60:
        return f"{seconds / 60:.0f} min ago"
    return "just now"


def verdict_sentence(estimate: MemoryEstimate, num_devices: int = 1) -> str:
    """Return "Fits: 17.9 of 24.0 GiB, ± 0.4" or the like; of several devices what each holds.

    The number is always the total, to which the parts add up and from which fixes save.
    """
    total, capacity = estimate.total_bytes, estimate.capacity_bytes
    each = f" on each of {num_devices} devices" if num_devices > 1 else ""
    used = f"{gib(total, 1)} of {gib(capacity, 1)} GiB{each}"
    if estimate.verdict == "does_not_fit":
        sentence = f"{memory(estimate.resident_bytes - capacity)} too much: {used}"
        if estimate.pageable_bytes:
            sentence += f", even with {memory(estimate.pageable_bytes)} paged out"
        return sentence
    if total > capacity:
        return f"Tight: {used}, {memory(total - capacity)} of it paged out"
    verdict = "Fits" if estimate.verdict == "fits" else "Tight"
    uncertainty = max(estimate.high_bytes - total, total - estimate.low_bytes)
    more = gib(uncertainty, 1)
    if total < GIB:
        used = f"{memory(total)} of {memory(capacity)}{each}"
        more = memory(uncertainty)
    margin = f", ± {more}" if uncertainty >= SMALL_UNCERTAINTY_BYTES else ""
    return f"{verdict}: {used}{margin}"


@dataclass(frozen=True)
class MemoryPart:
    """Part of an estimate as it is shown; all parts add up to the total."""

    component: Component
    title: str
    bytes: int
    note: str
    """One sentence about it."""
    may_leave_card: bool = False
    """True for paged optimizer states, which may wait in main memory."""


def memory_parts(estimate: MemoryEstimate) -> list[MemoryPart]:
    """Return the parts of an estimate; what may leave the card is one of its own, and the last."""
    parts = []
    paged = estimate.pageable_bytes
    for each in estimate.components:
        size = each.bytes - (paged if each.name == "optimizer_states" else 0)
        if size:
            title = each.name.replace("_", " ").capitalize()
            if each.name == "cuda_context":
                title = estimate.context.title
            parts.append(MemoryPart(each.name, title, size, each.note))
    if paged:
        title, note = "Paged optimizer states", "Wait in main memory where the card is too small."
        parts.append(MemoryPart("optimizer_states", title, paged, note, may_leave_card=True))
    return parts


def bottleneck_sentence(estimate: MemoryEstimate) -> str:
    """Return what holds most at the highest peak: the phase and its three largest parts."""
    largest = sorted(memory_parts(estimate), key=lambda part: -part.bytes)[:NUM_LARGEST_PARTS]
    parts = ", ".join(f"{part.title.lower()} {memory(part.bytes)}" for part in largest)
    return f"The highest phase is {PHASE_TITLES[estimate.binding_phase].lower()}: {parts}."


def sentences_of_several_devices(
    sharing: Sharing, estimate: MemoryEstimate, ram_bytes: int = 0
) -> list[str]:
    """Return how several devices share the model and why, what is scarce, and what it gains.

    `ram_bytes` is the main memory of the machine; 0 if it is not known.
    """
    num_devices = sharing.num_devices
    if num_devices == 1:
        return []
    sentences = [sharing.reason] if sharing.reason else []
    if sharing.is_divided:
        sentences.append(bottleneck_sentence(estimate))
        loaded = f"{num_devices} × {memory(sharing.loaded_bytes)}"
        said = f"Each process first loads the whole model into main memory: {loaded}"
        if ram_bytes and num_devices * sharing.loaded_bytes > ram_bytes:
            said += f", more than the {memory(ram_bytes)} of this machine"
        sentences.append(f"{said}.")
    if sharing.gain:
        one = "one" if sharing.one_holds_it else "one that held the job would be"
        said = f"By the forecast {num_devices} GPUs are {sharing.gain:.1f}× as fast as {one}"
        if sharing.gain < SMALL_GAIN_OF_A_DEVICE * num_devices:
            said += "; the rest of their time goes into talking to each other"
        sentences.append(f"{said}.")
    if sharing.pays_up_to:
        most, gain = sharing.pays_up_to, f"{MIN_GAIN:g}×"
        fewer = "1 GPU does" if most == 1 else f"{most} GPUs do"
        sentences.append(f"More than {fewer} not pay: twice as many are not {gain} as fast.")
    return sentences


def speed_sentence(speed: Speed) -> str:
    """Return "about 42 min · 3,900 tokens/s · $0.35" or the like."""
    parts = [f"{speed.tokens_per_second:,.0f} tokens/s"]
    if speed.hours is not None:
        parts.insert(0, f"about {rough_duration(speed.hours * 3600)}")
    if speed.usd is not None:
        digits = 2 if speed.usd < 100 else 0
        parts.append(f"${speed.usd:,.{digits}f}")
    return " · ".join(parts)


def fix_label(fix: Fix) -> str:
    """Return "✓ Checkpoint activations: −9.8 GiB, 1.3× slower". ✓ says that the job then fits."""
    effects = []
    if fix.saves_bytes:
        sign = "−" if fix.saves_bytes > 0 else "+"
        effects.append(f"{sign}{memory(abs(fix.saves_bytes))}")
    if fix.slowdown and fix.slowdown >= 1 + SMALL_SLOWDOWN:
        effects.append(f"{fix.slowdown:.2g}× slower")
    elif fix.slowdown and fix.slowdown <= 1 - SMALL_SLOWDOWN:
        effects.append(f"{1 / fix.slowdown:.2g}× faster")
    title = f"✓ {fix.title}" if fix.fits else fix.title
    if not effects:
        return title
    return f"{title}: {', '.join(effects)}"


def as_markdown(text: str) -> str:
    """Return a text as one line of Markdown that shows it as it is: no tag, link or cell of it."""
    return MARKUP.sub(r"\\\g<0>", escape(" ".join(text.split()), quote=False))


def file_size(num_bytes: float) -> str:
    """Return 17.9 GiB, 340 MiB, 12 KiB or 300 bytes."""
    if num_bytes >= MIB:
        return memory(num_bytes)
    if num_bytes < 1024:
        return f"{num_bytes:.0f} bytes"
    return f"{num_bytes / 1024:.0f} KiB"


def trace_sentence(traced: TraceResult, num_devices: int = 1) -> str:
    """Return what the trace did, in a sentence."""
    peak, seconds = memory(traced.peak_allocated_bytes), f"{traced.seconds:.0f} s"
    of_several = f" of one of {num_devices} devices" if num_devices > 1 else ""
    return f"Traced one training step{of_several} without data in {seconds}: {peak} at the peak."


def trace_verdict(estimate: MemoryEstimate, traced: TraceResult) -> str:
    """Return whether the estimate agrees with the trace, in a sentence."""
    miss = abs(estimate.peak_allocated_bytes / traced.peak_allocated_bytes - 1)
    if miss <= AGREES:
        return "The estimate agrees."
    return f"The estimate is off by {miss:.1%}: rely on the trace."


def traced_rows(estimate: MemoryEstimate, traced: TraceResult) -> list[tuple[str, ...]]:
    """Return (phase, estimated GiB, traced GiB, difference) of each phase, and of the reserved."""
    estimated_phases = {str(phase): size for phase, size in estimate.phases.items()}
    traced_phases = {str(phase): size for phase, size in traced.phases.items()}
    rows = [
        _traced_row(title, estimated_phases.get(phase, 0), traced_phases[phase])
        for phase, title in PHASE_TITLES.items()
        if traced_phases.get(phase)
    ]
    return [
        *rows,
        _traced_row("Reserved", estimate.peak_reserved_bytes, traced.peak_reserved_bytes),
    ]


def _traced_row(title: str, estimated: int, traced: int) -> tuple[str, ...]:
    if not estimated:
        return title, "–", gib(traced, 3), ""
    difference = f"{estimated / traced - 1:+.1%}"
    if difference.strip("+-") == "0.0%":
        difference = "0.0%"
    return title, gib(estimated, 3), gib(traced, 3), difference
