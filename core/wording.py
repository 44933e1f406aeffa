"""Numbers and states as words, for the page and the terminal alike. Plain text only; knows no layout."""

import time
from collections.abc import Mapping

from core.advise import Fix
from core.memory import MemoryEstimate
from core.runs import Run
from core.runs.past_runs import phase_peaks, prediction_errors
from core.speed import Speed
from core.training.contract.states import Phase, State

PHASES: Mapping[str, str] = {
    "load": "Load",
    "generation": "Generation",
    "forward": "Forward",
    "backward": "Backward",
    "optimizer_step": "Optimizer step",
    "eval": "Eval",
    "save": "Save",
}
WORK: Mapping[Phase, str] = {
    "import": "Loading the libraries",
    "data": "Reading the data",
    "load": "Loading the model",
    "train": "Training",
    "eval": "Evaluating",
    "save": "Saving",
}
"""What a running program is busy with, by the `phase` of its status.json."""


def gib(num_bytes: float, digits: int = 2) -> str:
    """17.93"""
    return f"{num_bytes / 2**30:.{digits}f}"


def memory(num_bytes: float) -> str:
    """17.9 GiB, or 340 MiB where GiB would be nearly nothing."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def count(number: float) -> str:
    """8.0B, 135M, 1,204"""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return (
                f"{number / size:.1f}{letter}"
                if number < 10 * size
                else f"{number / size:.0f}{letter}"
            )
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """2 h 05 min, 42 min, 9 s"""
    whole = int(seconds + 0.5)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def ago(when: float) -> str:
    """How long since a moment in Unix seconds: just now, 12 min ago, 5 h ago, 3 days ago."""
    seconds = time.time() - when
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size * (2 if name == "days" else 1):
            return f"{seconds / size:.0f} {name} ago"
    return "just now"


def verdict_sentence(found: MemoryEstimate) -> str:
    """Fits: 17.9 of 24.0 GiB, ± 0.4"""
    total, capacity = found.total_bytes, found.capacity_bytes
    if found.verdict == "does_not_fit":
        least = total - found.pageable_bytes
        return f"{memory(least - capacity)} too much: {gib(least, 1)} of {gib(capacity, 1)} GiB"
    if total > capacity:
        return f"Tight: {gib(total, 1)} of {gib(capacity, 1)} GiB, {memory(total - capacity)} of it paged out"
    doubt = max(found.high_bytes - total, total - found.low_bytes)
    spread = f", ± {gib(doubt, 1)}" if doubt >= 2**30 / 20 else ""
    amount = gib(total, 1) if total >= 2**30 else gib(total)
    return f"{'Fits' if found.verdict == 'fits' else 'Tight'}: {amount} of {gib(capacity, 1)} GiB{spread}"


def speed_sentence(speed: Speed) -> str:
    """About 42 min · 3,900 tokens/s · $0.35"""
    parts = [f"{speed.tokens_per_second:,.0f} tokens/s"]
    if speed.hours is not None:
        parts.insert(0, f"about {rough_duration(speed.hours * 3600)}")
    if speed.usd is not None:
        parts.append(f"${speed.usd:,.2f}" if speed.usd < 100 else f"${speed.usd:,.0f}")
    return " · ".join(parts)


def rough_duration(seconds: float) -> str:
    """42 min, 7 h, 3 days: no finer than a forecast is."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{max(1, round(seconds / 60))} min"


def fix_label(fix: Fix) -> str:
    """✓ Checkpoint activations: −9.8 GiB, 1.3× slower; the tick says that with it the job fits"""
    parts = []
    if fix.saves_bytes:
        parts.append(f"{'−' if fix.saves_bytes > 0 else '+'}{memory(abs(fix.saves_bytes))}")
    if fix.slowdown and fix.slowdown >= 1.03:
        parts.append(f"{fix.slowdown:.2g}× slower")
    elif fix.slowdown and fix.slowdown <= 0.97:
        parts.append(f"{1 / fix.slowdown:.2g}× faster")
    return f"{'✓ ' if fix.fits else ''}{fix.title}{': ' if parts else ''}{', '.join(parts)}"


def state_sentence(run: Run) -> str:
    """What a run is doing or how it ended, in a sentence."""
    step = f"step {run.step:,} of {run.max_steps:,}" if run.max_steps else ""
    if run.state == "running":
        work = WORK[run.status.phase] + _share_done(run)
        return f"{work}, {step}." if run.step else f"{work}."
    sentences: Mapping[State, str] = {
        "queued": "Waiting for its turn.",
        "starting": "Starting the training program.",
        "stopping": "Stopping after this step, with a checkpoint.",
        "finished": f"Finished: {run.step:,} steps in {duration(run.seconds)}.",
        "stopped": f"Stopped at {step}." if step else "Stopped before the first step.",
        "failed": run.error or "Failed.",
        "interrupted": run.error or "Interrupted.",
    }
    return sentences[run.state]


def _share_done(run: Run) -> str:
    """How much of what a running program is busy with is done, where it counts it and it is not the steps."""
    progress = run.status.progress
    if run.status.phase == "train" or progress is None or not progress.total:
        return ""
    return f": {progress.what} {min(1.0, progress.done / progress.total):.0%}"


def seconds_left(run: Run) -> float | None:
    """Seconds to go at the pace of the last logged steps; None before there is a pace, and while it waits."""
    is_under_way = run.is_active and run.state != "queued"
    clock = run.curves().get("time") if is_under_way else None
    if clock is None or len(clock.steps) < 3:
        return None
    steps, seconds = clock.steps[-50:], clock.values[-50:]
    if steps[-1] <= steps[0]:
        return None
    pace = float((seconds[-1] - seconds[0]) / (steps[-1] - steps[0]))
    return max(0.0, pace * (run.max_steps - run.step))


def memory_rows(run: Run) -> list[tuple[str, str, str, str]]:
    """Return (phase, predicted GiB, measured GiB, difference) of each phase that was measured.

    There is no difference for a run on a CPU.
    """
    errors = prediction_errors(run)
    peaks = phase_peaks(run)
    rows = []
    for phase, title in PHASES.items():
        if phase in peaks:
            predicted, measured = peaks[phase]
            difference = f"{errors[phase]:+.1%}" if errors else ""
            rows.append((title, gib(predicted, 3), gib(measured, 3), difference))
    return rows
