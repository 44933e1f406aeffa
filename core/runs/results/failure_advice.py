"""Advice for a run that failed or stands still. Proposes changes of the job; never makes them."""

import time
from dataclasses import replace
from functools import partial

from core.advise import Advice, advice_after, suggest_fixes
from core.dataset import counted
from core.device import cards_together
from core.job import SpecError
from core.resolve import ResolvedJob, resolve
from core.runs.edits import deleted
from core.runs.past_runs import past_runs
from core.runs.run import Run

MAX_ADVICE = 4
FREE_SHARE = 0.15
"""Share by which the next job should need less than a prediction that was too low."""
MAX_SILENT_STEPS = 10
MIN_SILENT_SECONDS = 60
"""A run stands still if it logs nothing for so many of its steps, and for so long."""
MAX_PHASE_SECONDS = 600
"""Time that reading, loading, compiling or saving may take before somebody should look."""


def advice_for(run: Run) -> tuple[Advice, ...]:
    """Return what would help a failed run, best first; empty for other runs.

    The job to try next is `run.fields_again() | change`.
    """
    if run.state != "failed":
        return ()
    resolved = _resolved(run)
    supports_bf16 = resolved is not None and resolved.gpu.supports_bf16
    advice = (
        *_take_less_memory(run, resolved),
        *_empty_the_trash(run),
        *advice_after(run.cause, run.job, supports_bf16),
    )
    return advice[:MAX_ADVICE]


def _resolved(run: Run) -> ResolvedJob | None:
    """Return the run's job with what it names; None if that is gone or cannot be estimated."""
    try:
        rows = run.prediction().rows
        resolved = resolve(run.fields_again(), rows=rows, past=partial(past_runs, run.home))
        resolved.estimate()
    except SpecError:
        return None
    return resolved


def _take_less_memory(run: Run, resolved: ResolvedJob | None) -> tuple[Advice, ...]:
    """Return what brings the job well below its predicted memory, which has proved to be too low.

    By how much is unknown, so where it was thought to fit, the gentlest change comes first. More
    devices, where they are there and enough, are always among the advice.
    """
    if resolved is None or resolved.model.shape is None:
        return ()
    is_on_cpu = resolved.gpu.compute_capability == (0, 0)
    if run.cause != "out_of_gpu_memory" and not (run.cause == "out_of_memory" and is_on_cpu):
        return ()
    predicted = resolved.estimate()
    capacity = run.status.device_capacity_bytes or resolved.gpu.capacity_bytes
    smaller = min(capacity, int((1 - FREE_SHARE) * predicted.total_bytes))
    card = replace(resolved.gpu, capacity_bytes=smaller)
    fixes = suggest_fixes(
        resolved.job,
        resolved.model.shape,
        card,
        resolved.rows,
        past=resolved.past,
        most_devices=_most_devices(run, resolved),
    )
    if predicted.verdict == "fits":
        fixes = tuple(sorted(fixes, key=lambda fix: fix.cost))
    rest = [fix for fix in fixes[MAX_ADVICE:] if fix.fits and "num_devices" in fix.change]
    fixes = (*fixes[: MAX_ADVICE - len(rest)], *rest)
    return tuple(Advice(fix.title, fix.why, fix.change) for fix in fixes)


def _most_devices(run: Run, resolved: ResolvedJob) -> int:
    """Return how many devices could train the job together where it has failed.

    Of a cluster nothing is known, so that its cards count as those of a usual machine.
    """
    submission = run.submission
    if submission is not None and not submission.placement.is_here:
        return resolved.most_devices
    try:
        return max(1, len(cards_together(run.job.device, 0)))
    except SpecError:  # the GPU is gone
        return 1


def _empty_the_trash(run: Run) -> tuple[Advice, ...]:
    num_runs = len(deleted(run.home))
    if run.cause != "disk_full" or num_runs == 0:
        return ()
    return (Advice("Empty the trash", f"{counted(num_runs, 'deleted run')} in it."),)


def stall_warning(run: Run, now: float | None = None) -> str | None:
    """Return a sentence if nothing has happened for much longer than usual, else None."""
    if run.state != "running":
        return None
    status = run.status
    last_sign, seconds_per_step = status.updated, 0.0
    is_stepping = status.phase == "train" and run.step > 0
    if is_stepping:
        last_sign = status.last_step_time or last_sign
        seconds_per_step = status.seconds_per_step or 0.0
    patience: float = MAX_PHASE_SECONDS
    if seconds_per_step:
        patience = max(MIN_SILENT_SECONDS, MAX_SILENT_STEPS * seconds_per_step)
    if now is None:
        now = time.time()
    silence = now - last_sign
    if not last_sign or silence < patience:
        return None
    if not is_stepping:
        return f"Nothing new for {_duration(silence)}."
    if not seconds_per_step:
        return f"No step for {_duration(silence)}."
    return f"No step for {_duration(silence)}; a step took {_duration(seconds_per_step)}."


def _duration(seconds: float) -> str:
    """Return "12 s", "4 min" or "2.5 h"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
