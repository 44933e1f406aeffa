"""State, results and peaks of a run as words, the same on the page and in the terminal."""

from collections.abc import Mapping

import numpy as np

from core.runs.engines import Submission, script
from core.runs.files import read_json
from core.runs.past_runs import compared_peaks, prediction_errors
from core.runs.run import Run
from core.training.contract.job import CHECK_PREFIX
from core.training.contract.stages import STAGES
from core.training.contract.status import Phase, State
from core.wording import MEASURED, duration, memory

NUM_PACE_POINTS = 50
"""Last logged points from which the remaining time is extrapolated."""
ACTIVITIES: Mapping[Phase, str] = {
    "import": "Loading the libraries",
    "data": "Reading the data",
    "load": "Loading the model",
    "train": "Training",
    "eval": "Evaluating",
    "save": "Saving",
}
"""Phase of a running program -> what it does."""


def state_sentence(run: Run) -> str:
    """Return what a run does or how it ended, and whether its cluster answers."""
    said = _state_sentence(run)
    if run.submission and run.is_active and run.state != "queued":
        return f"{said} {run.submission.silence}".strip()
    return said


def _state_sentence(run: Run) -> str:
    step = f"step {run.step:,} of {run.max_steps:,}" if run.max_steps else ""
    where = f" on {run.submission.name}" if run.submission else ""
    if run.state == "running":
        activity = ACTIVITIES[run.status.phase] + _share_done(run)
        if run.step:
            return f"{activity}, {step}{where}."
        return f"{activity}{where}."
    if run.state == "queued" and run.submission:
        return _waiting_sentence(run.submission)
    sentences: Mapping[State, str] = {
        "queued": "Waiting for its turn.",
        "starting": f"Starting the training program{where}.",
        "stopping": "Stopping after this step, with a checkpoint.",
        "finished": f"Finished: {run.step:,} steps in {duration(run.seconds)}. {_end(run)}".strip(),
        "stopped": _stopped(run, step),
        "failed": run.error or "Failed.",
        "interrupted": run.error or "Interrupted.",
    }
    return sentences[run.state]


def _stopped(run: Run, step: str) -> str:
    """Return where a run was stopped, and why if no person asked for it."""
    said = f"Stopped at {step}." if step else "Stopped before the first step."
    reason = read_json(run.folder / "stop").get("reason")
    if run.state == "stopped" and isinstance(reason, str) and reason:
        said += f" {reason}"
    return said


def _waiting_sentence(submission: Submission) -> str:
    """Return "Waiting on Slurm job 12: PENDING (Priority), other jobs are before it."."""
    if submission.state.stage == "sending":
        return f"Being sent to {submission.name}."
    return f"Waiting on {submission.explanation}."


def _end(run: Run) -> str:
    """Return why a run ended early, and which step its result holds if that is not the last."""
    said = [run.status.ended_early or ""]
    if run.result_step not in (None, run.step):
        said.append(f"The result is that of step {run.result_step:,}.")
    return " ".join(filter(None, said))


def devices_sentence(run: Run) -> str:
    """Return how the devices of a run share the rows of an optimizer step."""
    job, places = run.job, run.placement.nodes
    count = job.num_devices * places
    num_rows = job.effective_batch_size * count
    size, passes = job.per_device_train_batch_size, job.gradient_accumulation_steps
    on = "1 device" if count == 1 else f"{count} devices"
    each = "" if count == 1 else " on each"
    said = f"An optimizer step has {num_rows:,} rows on {on}: {size:,} at once{each}"
    return f"{said}, {passes:,} times." if passes > 1 else f"{said}."


def earlier_script(run: Run) -> int:
    """Return the number of the file in which the script of earlier settings is, 0 without one."""
    path = run.folder / script.EARLIER
    return path.stat().st_ino if path.exists() else 0


def script_sentence(run: Run, before: int) -> str:
    """Return what became of the submit.sh of a run that was sent with other settings, "" if it has
    the one that it had. `before` is what `earlier_script` said then."""
    if earlier_script(run) in (0, before):
        return ""
    said = f"{script.NAME} is written again for these settings; the one before is kept as"
    return f"{said} {script.EARLIER}: copy lines of your own from there."


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
