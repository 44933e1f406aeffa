"""Numbers and states as words, the same on the page and in the terminal. Plain text, no layout."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from core.advise import Fix
from core.export import Export, Verification
from core.export.plan import ExportPlan
from core.memory import Component, MemoryEstimate
from core.runs import Run
from core.runs.past_runs import compared_peaks, prediction_errors
from core.speed import Speed
from core.training.contract.job import CHECK_PREFIX
from core.training.contract.stages import STAGES
from core.training.contract.status import Phase, State

GIB, MIB = 2**30, 2**20
SMALL_UNCERTAINTY_BYTES = GIB / 20
"""A smaller uncertainty is not worth mentioning."""
SMALL_SLOWDOWN = 0.03
"""The same for a change of speed."""
NUM_PACE_POINTS = 50
"""Last logged points from which the remaining time is extrapolated."""
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
ACTIVITIES: Mapping[Phase, str] = {
    "import": "Loading the libraries",
    "data": "Reading the data",
    "load": "Loading the model",
    "train": "Training",
    "eval": "Evaluating",
    "save": "Saving",
}
"""Phase of a running program -> what it does."""


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


def verdict_sentence(estimate: MemoryEstimate) -> str:
    """Return "Fits: 17.9 of 24.0 GiB, ± 0.4" or the like.

    The number is always the total, to which the parts add up and from which fixes save.
    """
    total, capacity = estimate.total_bytes, estimate.capacity_bytes
    used = f"{gib(total, 1)} of {gib(capacity, 1)} GiB"
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
        used = f"{memory(total)} of {memory(capacity)}"
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


def state_sentence(run: Run) -> str:
    """Return what a run does or how it ended."""
    step = f"step {run.step:,} of {run.max_steps:,}" if run.max_steps else ""
    if run.state == "running":
        activity = ACTIVITIES[run.status.phase] + _share_done(run)
        if run.step:
            return f"{activity}, {step}."
        return f"{activity}."
    sentences: Mapping[State, str] = {
        "queued": "Waiting for its turn.",
        "starting": "Starting the training program.",
        "stopping": "Stopping after this step, with a checkpoint.",
        "finished": f"Finished: {run.step:,} steps in {duration(run.seconds)}. {_end(run)}".strip(),
        "stopped": f"Stopped at {step}." if step else "Stopped before the first step.",
        "failed": run.error or "Failed.",
        "interrupted": run.error or "Interrupted.",
    }
    return sentences[run.state]


def _end(run: Run) -> str:
    """Return why a run ended early, and which step its result holds if that is not the last."""
    said = [run.status.ended_early or ""]
    if run.result_step not in (None, run.step):
        said.append(f"The result is that of step {run.result_step:,}.")
    return " ".join(filter(None, said))


def check_words(run: Run) -> str:
    """Return "identity 89/100, capabilities 22/36"; "" for a run that was not checked.

    Numbers of another step than that of the result name their step.
    """
    step = run.result_step if run.checks else None
    parts = []
    for each in run.checks:
        said = f"{each.name} {each.after}/{each.total}"
        if step is not None and each.step not in (None, step):
            said += f" at step {each.step:,}"
        parts.append(said)
    return ", ".join(parts)


def best_sentence(run: Run) -> str:
    """Return "Best at step 120: eval_loss 0.3211.", or "" if fewer than two were evaluated.

    The share of a suite stands beside that of the model before the training.
    """
    best = run.best
    if best is None:
        return ""
    sentence = f"Best at step {best.step:,}: {evaluation_words(best.metric, best.value)}"
    curve = run.curves().get(best.metric)
    if curve and curve.steps[0] == 0 and best.metric.startswith(CHECK_PREFIX):
        sentence += f" ({curve.values[0]:.3g} % before the training)"
    return f"{sentence}."


def loss_note(stage_id: str) -> str:
    """Return what to know of a stage's loss before it is compared; "" if nothing."""
    stage = STAGES[stage_id]
    if not stage.compares_neighbours:
        return ""
    return (
        f"The training loss of {stage.title} depends on how many rows a batch holds: compare it "
        "only with runs of the same batch. Its evaluation loss always compares "
        f"{stage.min_batch_size} rows."
    )


def evaluation_words(metric: str, value: float) -> str:
    """Return "eval_loss 0.3211", or "identity 89 %" for the share of a suite."""
    if metric.startswith(CHECK_PREFIX):
        return f"{metric.removeprefix(CHECK_PREFIX)} {value:.3g} %"
    return f"{metric} {value:.4g}"


def _share_done(run: Run) -> str:
    """Return ": loading weights 40%", or "" for training, whose progress are its steps."""
    progress = run.status.progress
    if run.status.phase == "train" or progress is None or not progress.total:
        return ""
    return f": {progress.what} {min(1.0, progress.done / progress.total):.0%}"


def seconds_left(run: Run) -> float | None:
    """Extrapolate the remaining seconds from the last logged steps; None if there are too few."""
    if not run.is_active or run.state == "queued":
        return None
    clock = run.curves().get("time")
    if clock is None or len(clock.steps) < 3:
        return None
    steps, seconds = clock.steps[-NUM_PACE_POINTS:], clock.values[-NUM_PACE_POINTS:]
    num_steps, passed = np.diff(steps), np.diff(seconds)
    is_ahead = (num_steps > 0) & (passed >= 0)  # a resume goes back
    if not is_ahead.any():
        return None
    # The median, because a pause or an evaluation between two steps says nothing of the others
    pace = float(np.median(passed[is_ahead] / num_steps[is_ahead]))
    return max(0.0, pace * (run.max_steps - run.step))


def memory_rows(run: Run) -> list[tuple[str, str, str, str]]:
    """Return (what, predicted, measured, difference) of each peak that was both."""
    errors = prediction_errors(run)
    peaks = compared_peaks(run)
    rows = []
    for name, title in MEASURED.items():
        if name in peaks:
            predicted, measured = peaks[name]
            rows.append((title, memory(predicted), memory(measured), f"{errors[name]:+.1%}"))
    return rows


def peak_memory(run: Run) -> str:
    """Return the measured peak of a run with what it counts, the same in every place.

    "17.2 GiB allocated", "639 MiB process", or "" before there is one.
    """
    if not run.peak_bytes:
        return ""
    return f"{memory(run.peak_bytes)} {run.peak_kind}"


def file_size(num_bytes: float) -> str:
    """Return 17.9 GiB, 340 MiB or 12 KiB."""
    if num_bytes >= MIB:
        return memory(num_bytes)
    return f"{num_bytes / 1024:.0f} KiB"


def export_size(export: Export) -> str:
    """Return the size of an export and whether it was verified: 340 MiB, verified."""
    verified = export.manifest.verified
    if verified is None:
        return f"{memory(export.num_bytes)}, not verified"
    trust = "verified" if verified.trusted else "not to be trusted"
    return f"{memory(export.num_bytes)}, {trust}"


def export_facts(plan: ExportPlan) -> str:
    """Return the size, the room that making it needs, and the rough time of an export."""
    facts = [f"{memory(plan.num_bytes)}"]
    if plan.temporary_bytes:
        facts.append(f"{memory(plan.temporary_bytes)} more while it is made")
    facts.append(f"about {rough_duration(plan.seconds)} without the verification")
    return " · ".join(facts)


def verified_sentence(verified: Verification | None) -> str:
    """Return how an export was verified, and whether it is to be trusted."""
    if verified is None:
        return "Not verified."
    number = verified.questions
    said = (
        f"{verified.same_answers} of {number} answers as trained, "
        f"{verified.prompt_tokens_equal} of {number} prompts the same tokens, "
        f"{verified.ends} of {number} end alike"
    )
    if verified.worst_logprob_difference is not None:
        said += f", first tokens within {verified.worst_logprob_difference:.2g} in log-probability"
    said += f" ({verified.program} against the {verified.compared_with})"
    if verified.trusted:
        return f"Verified: {said}."
    return f"Not to be trusted: {verified.note or 'nothing was compared'}. {said}."
