"""A run as its folder tells it at one moment: its job, its state, how far it is, what it cost. Only reads."""

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from core.device import find_preset
from core.job import JobSpec, Problem, RunNotFound
from core.models import gpus
from core.resolve import default_fields, reference_of
from core.runs.files import number_in, open_regular, parse_line, read_json, read_rows
from core.runs.home import Home, Schedule, read_schedule
from core.runs.states import Verdict, judge
from core.training.contract.process_id import ProcessId
from core.training.contract.states import ACTIVE, State
from core.training.contract.status import Status

RUN_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")


@dataclass(frozen=True)
class About:
    """What a person wrote about a run."""

    title: str = ""
    """Shown instead of the id, which stays."""
    notes: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it at one moment."""

    id: str
    folder: Path
    job: JobSpec
    state: State
    error: str
    created: float
    """Unix seconds."""
    status: Status
    """Content of status.json; all defaults before the program has written it."""
    cause: str = ""
    """Why it failed, in a word that core.remedy knows; empty where there is nothing to say."""
    about: About = field(default_factory=About)
    process: ProcessId | None = None
    """Who executes it; None if nobody does."""

    @property
    def home(self) -> Home:
        return Home(self.folder.parent.parent)

    @property
    def name(self) -> str:
        """Its title, or else its id."""
        return self.about.title or self.id

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def step(self) -> int:
        return self.status.step

    @property
    def max_steps(self) -> int:
        return self.status.max_steps

    @property
    def peak_bytes(self) -> int | None:
        """Highest allocated memory so far; on a CPU the most that the whole process took in its first steps."""
        if self.status.peak_allocated_bytes:
            return self.status.peak_allocated_bytes
        phases = self.status.phase_peak_bytes
        return max(phases.values()) + (self.status.baseline_bytes or 0) if phases else None

    @cached_property
    def loss(self) -> float | None:
        """The last one that was logged."""
        return number_in(last_metrics(self.folder), "loss")

    @cached_property
    def seconds(self) -> float:
        """Time spent, in all the lives of the run; waiting in the queue is not counted."""
        trained = number_in(last_metrics(self.folder), "time") or 0.0
        # Early programs did not write `seconds`.
        counted = self.status.seconds or self.status.updated - self.status.started
        return max(trained, counted)

    @property
    def usd(self) -> float | None:
        """What the time costs on the card it ran on, or before that is known on the job's, where the presets know a
        price; a processor has none."""
        card = gpus().get(self.job.gpu)
        if self.status.device:
            card = find_preset(self.status.device, self.status.device_capacity_bytes or 0)
        return self.seconds / 3600 * card.usd_per_hour if card and card.usd_per_hour else None

    def to_json(self) -> dict[str, object]:
        """The run as `runs list --json` prints it."""
        return {
            "id": self.id,
            "title": self.about.title,
            "tags": list(self.about.tags),
            "state": self.state,
            "model": reference_of(self.job.model),
            "stage": self.job.stage,
            "method": self.job.method,
            "dataset": self.job.dataset,
            "created": self.created,
            "step": self.step,
            "max_steps": self.max_steps,
            "loss": self.loss,
            "peak_bytes": self.peak_bytes,
            "seconds": self.seconds,
            "usd": self.usd,
            "error": self.error,
            "cause": self.cause,
            "folder": str(self.folder),
        }


def read(home: Home, run_id: str) -> Run:
    """One run. Raises RunNotFound, or SpecError for a job that this version does not understand."""
    return read_with(home, run_id, read_schedule(home))


def read_with(home: Home, run_id: str, schedule: Schedule) -> Run:
    """One run, where the schedule is known already. Raises as `read` does."""
    folder = home.runs / run_id
    try:
        if not RUN_ID.fullmatch(run_id) or folder.is_symlink():
            raise FileNotFoundError
        with open_regular(folder / "job.json") as file:
            job, created = _job(file.read()), os.fstat(file.fileno()).st_mtime
    except (OSError, UnicodeDecodeError):
        raise RunNotFound(
            Problem("run", f"there is no run {run_id!r}", "`python app.py runs` lists all runs")
        ) from None
    status = Status.from_json(read_json(folder / "status.json"))
    verdict = Verdict("queued") if run_id in schedule.waiting else judge(folder, status, created)
    return Run(
        run_id,
        folder,
        job,
        verdict.state,
        verdict.error,
        created,
        status,
        verdict.cause,
        _about(folder),
        verdict.process,
    )


def fields_again(run: Run) -> dict[str, object]:
    """The field values that would ask for the same run again, on the run's own copy of its data."""
    fields = run.job.model_dump()
    copies = {
        name: str(run.folder / fields[name]) for name in ("dataset", "eval_dataset") if fields[name]
    }
    return fields | copies | {"model": reference_of(run.job.model), "dataset_sha256": ""}


def fields_of_next_stage(run: Run, stage: str) -> dict[str, object]:
    """The field values of a job that goes on from a run's result: its adapter over the same base, or its model.

    Settings that only trade memory for speed stay; the others are the stage's own. The data is the person's to give.
    """
    output = str(run.folder / "output")
    before = fields_again(run)
    start = {"adapter": output} if run.job.trains_adapter else {"model": output}
    kept = (
        "model",
        "revision",
        "method",
        "gpu",
        "dtype",
        "max_length",
        "optim",
        "profile",
        *MEMORY_FIELDS,
    )
    new = default_fields(before["model"], run.job.method, stage) | {
        name: before[name] for name in kept
    }
    return new | start | {"stage": stage, "dataset": "demo" if before["model"] == "demo" else ""}


MEMORY_FIELDS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "checkpoint_every_n_layers",
    "lora_r",
)


def last_metrics(folder: Path) -> dict[str, Any]:
    """The last row that holds a loss, from the end of the file only."""
    rows = read_rows(folder / "metrics.jsonl", last=8000)
    return next((row for row in reversed(rows) if "loss" in row), {})


def _job(text: bytes) -> JobSpec:
    """The job of a job file, read by the quicker parser where that understands it. Raises SpecError."""
    fields = parse_line(text)
    return JobSpec.parse(fields) if isinstance(fields, dict) else JobSpec.from_json(text.decode())


def _about(folder: Path) -> About:
    said = read_json(folder / "about.json")
    tags = said.get("tags")
    return About(
        title=str(said.get("title") or ""),
        notes=str(said.get("notes") or ""),
        tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
    )
