"""Continue a finished run: a new run starts from its last state, with a schedule of its own.

The weights, the optimizer's states, the step and the order of the rows are those that the first run
would have had; the learning rate begins its warm-up and its schedule again.
"""

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.job import JobSpec, Problem, SpecError
from core.resolve import reference_of
from core.runs.creation import PROGRAM, reserve
from core.runs.home import Home
from core.runs.packages import requirements
from core.runs.run import Run, read
from core.training.contract.checkpoint_files import MANIFEST, Checkpoint, read_manifest
from core.training.contract.files import write_json, write_text

COPIED_FILES = ("estimate.json", "samples.jsonl")
"""Memory stays the same, and answers before the training are those of the base model."""


@dataclass(frozen=True)
class Continuation:
    """Run that continues another."""

    before: Run
    checkpoint: Checkpoint
    """Last state of that run."""
    job: JobSpec
    last_step: int
    """Step at which the new run ends."""
    epochs: float
    """Further passes over the data."""

    @property
    def sentence(self) -> str:
        """State that is carried over, and the course of the learning rate."""
        start = self.checkpoint.step
        epochs = "1 more epoch" if self.epochs == 1 else f"{self.epochs:g} more epochs"
        return (
            f"Continues {self.before.name} from step {start:,} to step {self.last_step:,} "
            f"({epochs}), with its weights, optimizer states and order of rows. "
            f"{_schedule_sentence(self.job, start, self.last_step)}"
        )


def plan_continuation(run: Run, epochs: float) -> Continuation:
    """Return how a finished run would continue for more epochs. Raises SpecError if it cannot."""
    if run.state != "finished":
        fix = "resume it" if run.state in ("stopped", "failed", "interrupted") else "wait for it"
        raise SpecError(Problem("run", f"{run.id} is {run.state}, not finished", fix))
    if not math.isfinite(epochs) or not 0 < epochs <= 10_000:
        problem = f"{epochs:g} is not a number of epochs"
        raise SpecError(Problem("epochs", problem, "give more than 0, such as 2"))
    checkpoint = _last_state(run)
    steps_per_epoch = run.step / (run.status.epoch or 1.0)
    last_step = run.step + max(1, round(epochs * steps_per_epoch))
    changes: dict[str, object] = {"lr_restart_step": run.step}
    total = round(run.status.epoch, 6) + epochs
    if run.job.max_steps < 0 and total.is_integer():
        changes["num_train_epochs"] = total
    else:
        changes["max_steps"] = last_step
    job = JobSpec.parse({**run.job.model_dump(), **changes})
    return Continuation(run, checkpoint, job, last_step, epochs)


def create_continuation(home: Home, plan: Continuation) -> Run:
    """Create the folder of a run that continues another, complete or not at all.

    Raises OSError, SpecError if the last state of the other is gone by now.
    """
    folder = reserve(home, plan.job.model_copy(update={"model": reference_of(plan.job.model)}))
    run_id = folder.name.removeprefix(".")
    before = plan.before.folder
    try:
        shutil.copytree(before / "data", folder / "data")
        no_cache = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROGRAM, folder / "training", ignore=no_cache)
        for name in COPIED_FILES:
            if (before / name).is_file():
                shutil.copyfile(before / name, folder / name)
        _copy_checkpoint(plan, folder / "checkpoints" / plan.checkpoint.folder.name)
        write_text(folder / "requirements.txt", requirements())
        write_json(folder / "about.json", {"title": "", "notes": plan.sentence, "tags": []})
        write_text(folder / "job.json", plan.job.to_json())
        folder.rename(home.runs / run_id)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return read(home, run_id)


def _last_state(run: Run) -> Checkpoint:
    """Return the checkpoint of the last step of a run. Raises SpecError."""
    for each in run.checkpoints:
        if each.is_complete and each.step == run.step and (each.folder / MANIFEST).is_file():
            return each
    problem = f"{run.id} has no checkpoint of its last step {run.step}"
    fix = "start a new run whose adapter or model is its result"
    raise SpecError(Problem("run", problem, fix))


def _copy_checkpoint(plan: Continuation, target: Path) -> None:
    """Copy a checkpoint whose manifest says what the new run is. Nothing changes its files.

    Raises OSError, SpecError.
    """
    source = plan.checkpoint.folder
    try:
        manifest = dict(read_manifest(source))
    except ValueError:
        problem = f"the manifest of {source.name} cannot be read"
        raise SpecError(Problem("run", problem, "choose another run")) from None
    target.parent.mkdir(parents=True)
    shutil.copytree(source, target, copy_function=_link)
    facts = manifest.get("facts")
    old_facts: Mapping[str, object] = facts if isinstance(facts, dict) else {}
    fields = plan.job.model_dump()
    names = ("lr_restart_step", "num_train_epochs", "max_steps")
    new_facts = {**old_facts, **{name: fields[name] for name in names}}
    (target / MANIFEST).unlink()  # it may share its content with that of the source
    new_manifest = {**manifest, "max_steps": plan.last_step, "facts": new_facts}
    write_json(target / MANIFEST, new_manifest)


def _link(source: str, target: str) -> None:
    """Give a file of a checkpoint, which nothing ever changes, a second name; else copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _schedule_sentence(job: JobSpec, start: int, last_step: int) -> str:
    """Return what the learning rate does after a restart of its schedule."""
    num_steps = last_step - start
    peak = f"{job.learning_rate:g}"
    if job.lr_scheduler_type == "constant":
        return f"The learning rate stays {peak}."
    asked = job.warmup_steps or math.ceil(num_steps * job.warmup_ratio)
    num_warmup_steps = min(asked, num_steps - 1)
    rise = f"The learning rate begins again at {peak}"
    has_flat_part = job.lr_scheduler_type == "warmup_stable_decay"
    if num_warmup_steps:
        # That of transformers warms up from the rate at which it ends.
        first = f"{job.min_lr_rate * job.learning_rate:g}" if has_flat_part else "0"
        step = f"{start + num_warmup_steps:,}"
        rise = f"The learning rate rises again from {first} to {peak} by step {step}"
    if job.lr_scheduler_type == "constant_with_warmup":
        return f"{rise} and stays there."
    lowest = 0.0
    if job.lr_scheduler_type not in ("cosine", "linear"):
        lowest = job.min_lr_rate * job.learning_rate
    end = f"to {lowest:g} at step {last_step:,}"
    if has_flat_part:
        num_falling = min(
            max(1, round(job.lr_decay_ratio * num_steps)), num_steps - num_warmup_steps
        )
        if num_falling < num_steps - num_warmup_steps:
            return f"{rise}, stays there, then falls after step {last_step - num_falling:,} {end}."
    return f"{rise}, then falls ({job.lr_scheduler_type}) {end}."
