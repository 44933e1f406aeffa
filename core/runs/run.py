"""Run: a training as its folder shows it at one moment. Only reads."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.device import find_preset
from core.job import JobSpec, Problem, RunNotFound
from core.models import DEMO_DIR, gpus
from core.resolve import default_fields, reference_of
from core.runs.checks import CheckCount
from core.runs.curves import Curve, read_curves
from core.runs.engines import Placement, Submission, read_submission
from core.runs.estimates import EstimateSpan, spans_of
from core.runs.files import (
    log_tail,
    number_in,
    open_regular,
    parse_json,
    read_json,
    read_rows,
)
from core.runs.home import Home, Schedule, read_schedule
from core.runs.known_steps import with_known_steps
from core.runs.records import Annotations, BestStep, Prediction, Sample, read_check_counts
from core.runs.states import RunState, infer_state
from core.training.contract.checkpoint_files import (
    MANIFEST,
    Checkpoint,
    bytes_in,
    list_checkpoints,
)
from core.training.contract.job import IN_EARLIER_RUNS, PLACES, absolute_places
from core.training.contract.process_id import ProcessId
from core.training.contract.status import ACTIVE, State, Status

RUN_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")
DEMO_PARTS = DEMO_DIR.parts[-3:]
"""Last parts of the demo model's folder, which is no part of a home."""
GROWING_FILES = ("metrics.jsonl", "log.txt", "samples.jsonl")
"""Files that a program appends to, which does not change the time of their folder."""
NEXT_STAGE_KEEPS = (
    "model",
    "revision",
    "method",
    "gpu",
    "dtype",
    "max_length",
    "use_chat_template",
    "optim",
    "profile",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "checkpoint_every_n_layers",
    "lora_r",
)
"""Job fields that a next stage takes over. For all others it has its own defaults."""


@dataclass(frozen=True)
class Run:
    """Run as its folder shows it at one moment."""

    id: str
    folder: Path
    job: JobSpec
    state: State
    error: str
    created: float
    """Unix seconds."""
    status: Status
    """Content of status.json; before the program has written it, the steps of a checkpoint."""
    cause: str = ""
    """Name of the failure, as in failures.CAUSES; "" if none is known."""
    about: Annotations = field(default_factory=Annotations)
    process: ProcessId | None = None
    """Process that executes it, if one does."""
    checks: tuple[CheckCount, ...] = ()
    """What suites have found, those of the usual suites first."""
    submission: Submission | None = None
    """Job of a cluster that trains it; None for a run of this machine."""

    def __hash__(self) -> int:
        return hash(self.folder)  # its status contains mappings, which have no hash

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
    def placement(self) -> Placement:
        """Where it trains, or trained last."""
        return self.submission.placement if self.submission else Placement()

    @property
    def step(self) -> int:
        return self.status.step

    @property
    def max_steps(self) -> int:
        return self.status.max_steps

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Checkpoints in its folder, oldest first."""
        return list_checkpoints(self.folder / "checkpoints")

    @property
    def has_checkpoint(self) -> bool:
        """True if it can be resumed from a checkpoint."""
        return any(checkpoint.is_complete for checkpoint in self.checkpoints)

    @property
    def best(self) -> BestStep | None:
        """Best of at least two evaluations; None if there are fewer.

        Early programs did not name it, so it is then looked up in the metrics.
        """
        status = self.status
        metric = status.best_metric or "eval_loss"
        curve = self.curves().get(metric)
        if curve is None or len(curve.steps) < 2:
            return None
        if status.best_step is not None and status.best_value is not None:
            return BestStep(status.best_step, metric, status.best_value)
        if not np.isfinite(curve.values).any():
            return None
        place = int(np.nanargmin(curve.values))
        return BestStep(int(curve.steps[place]), metric, float(curve.values[place]))

    @property
    def result_step(self) -> int | None:
        """Step whose weights its result holds; None without a result, or if it does not say."""
        step = read_json(self.folder / "output" / MANIFEST).get("step")
        if isinstance(step, int):
            return step
        return None

    @property
    def peak_bytes(self) -> int | None:
        """Highest allocated memory of a GPU; without one, the most that the process has taken."""
        highest = self.status.peak_allocated_bytes or self.status.peak_process_bytes
        if highest:
            return highest
        phases = self.status.phase_peak_bytes  # of an early program
        if not phases:
            return None
        return max(phases.values()) + (self.status.baseline_bytes or 0)

    @property
    def peak_kind(self) -> Literal["allocated", "process"]:
        """Kind of memory that `peak_bytes` counts."""
        is_process = self.status.peak_process_bytes or self.status.baseline_bytes
        if is_process:
            return "process"
        return "allocated"

    @property
    def predicted_bytes(self) -> int | None:
        """Predicted memory of the process: the total of its estimate; None if there is none.

        Early estimates for a processor hold the tensors alone.
        """
        return self.prediction().total_with(self.status.baseline_bytes)

    @cached_property
    def last_metrics(self) -> Mapping[str, Any]:
        """Last row of metrics.jsonl that has a loss, from the end of the file only."""
        for row in reversed(read_rows(self.folder / "metrics.jsonl", last=8000)):
            if "loss" in row:
                return row
        return {}

    @property
    def loss(self) -> float | None:
        """Last loss that was logged."""
        return number_in(self.last_metrics, "loss")

    @property
    def seconds(self) -> float:
        """Training time over all attempts, without waiting in the queue."""
        logged = number_in(self.last_metrics, "time") or 0.0
        # early programs did not write `seconds`
        counted = self.status.seconds or self.status.updated - self.status.started
        return max(logged, counted)

    @property
    def usd(self) -> float | None:
        """Price of the time on its GPU, if the presets know a price.

        Before the program has written which GPU it uses, it is that of the job.
        """
        gpu = gpus().get(self.job.gpu)
        if self.status.device:
            gpu = find_preset(self.status.device, self.status.device_capacity_bytes or 0)
        if gpu is None or gpu.usd_per_hour is None:
            return None
        return self.seconds / 3600 * gpu.usd_per_hour

    @property
    def checks_of_result(self) -> tuple[CheckCount, ...]:
        """Return its checks without those of a result that another checkpoint has replaced."""
        step = self.result_step if self.checks else None
        return tuple(each for each in self.checks if None in (step, each.step) or each.step == step)

    def metrics(self) -> tuple[dict[str, Any], ...]:
        """Return the rows of metrics.jsonl. For plots see `curves`."""
        return read_rows(self.folder / "metrics.jsonl")

    def curves(self, max_points: int = 2000) -> Mapping[str, Curve]:
        """Return the numbers in metrics.jsonl by key, each thinned to at most `max_points`."""
        return read_curves(self.folder, max_points)

    def samples(self) -> tuple[Sample, ...]:
        """Return the answers in samples.jsonl, without damaged rows."""
        rows = map(Sample.from_json, read_rows(self.folder / "samples.jsonl"))
        return tuple(row for row in rows if row)

    def estimates(self) -> tuple[EstimateSpan, ...]:
        """Return its estimates in the order of its steps: another for each number of devices."""
        return spans_of(self.folder, self.status)

    def prediction(self) -> Prediction:
        """Return what was predicted for the attempt that its status is of."""
        return self.estimates()[-1].prediction

    def fields_in(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file of its folder, or {} if there is none."""
        return read_json(self.folder / name)

    def open(self, path: Path) -> FileIO:
        """Open a file of it for reading. Raises OSError for links and special files."""
        return open_regular(path)

    def log_tail(self, num_bytes: int = 8000) -> str:
        """Return the last lines of its log."""
        return log_tail(self.folder, num_bytes)

    def fingerprint(self) -> str:
        """Return a text that changes when there is something new to show."""
        marks = []
        for path in (self.folder, *(self.folder / name for name in GROWING_FILES)):
            try:
                stat = path.stat()
                marks.append(f"{stat.st_size}:{stat.st_mtime_ns}")
            except OSError:  # missing, or a link that leads nowhere
                marks.append("-")
        return " ".join(marks)

    def disk_bytes(self) -> int:
        """Return its size on the disk. Counted again only when a file was created or replaced."""
        folders = (self.folder, self.folder / "checkpoints", self.folder / "output")
        times = tuple(folder.stat().st_mtime_ns for folder in folders if folder.exists())
        return _bytes_in(self.folder, times)

    def fields_again(self) -> dict[str, object]:
        """Return the job fields that would train the same again, on this run's copy of its data."""
        fields = self.job.model_dump()
        for name in ("dataset", "eval_dataset"):
            if fields[name]:
                fields[name] = str(self.folder / fields[name])
        suites = (str(self.folder / name) for name in self.job.check_suites.split(",") if name)
        fields["check_suites"] = ",".join(suites)
        return {**fields, "model": reference_of(self.job.model), "dataset_sha256": ""}

    def fields_of_next_stage(self, stage: str) -> dict[str, object]:
        """Return the job fields of a stage that starts from this run's result, without data."""
        fields = self.fields_again()
        kept = {name: fields[name] for name in NEXT_STAGE_KEEPS}
        result = "adapter" if self.job.trains_adapter else "model"
        return {
            **default_fields(fields["model"], self.job.method, stage),
            **kept,
            result: str(self.folder / "output"),
            "stage": stage,
            "dataset": "demo" if fields["model"] == "demo" else "",
        }

    def to_json(self) -> dict[str, object]:
        """Return the run as `runs list --json` prints it."""
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
            "peak_kind": self.peak_kind,
            "seconds": self.seconds,
            "usd": self.usd,
            "error": self.error,
            "cause": self.cause,
            "checks": [asdict(each) for each in self.checks],
            "folder": str(self.folder),
            "cluster": self.submission.to_json() if self.submission else None,
        }


def read(home: Home, run_id: str, schedule: Schedule | None = None) -> Run:
    """Read a run, with the schedule if the caller has read it already.

    Raises RunNotFound, SpecError for a job that this version of Tailor does not understand.
    """
    schedule = schedule or read_schedule(home)
    folder = home.runs / run_id
    try:
        if not RUN_ID.fullmatch(run_id) or folder.is_symlink():
            raise FileNotFoundError
        with open_regular(folder / "job.json") as file:
            text, created = file.read(), os.fstat(file.fileno()).st_mtime
        job = _parse_job(text, folder)
    except (OSError, UnicodeDecodeError):
        fix = "`python app.py runs` lists all runs"
        raise RunNotFound(Problem("run", f"there is no run {run_id!r}", fix)) from None
    status = Status.from_json(read_json(folder / "status.json"))
    state = RunState("queued")
    if run_id not in schedule.waiting:
        state = infer_state(folder, status, created)
    return Run(
        id=run_id,
        folder=folder,
        job=job,
        state=state.state,
        error=state.error,
        created=created,
        status=with_known_steps(folder, status),
        cause=state.cause,
        about=_read_about(folder),
        process=state.process,
        checks=read_check_counts(folder),
        submission=None if run_id in schedule.waiting else read_submission(folder),
    )


def _parse_job(text: bytes, folder: Path) -> JobSpec:
    """Return the job of a run, with whole paths. Raises SpecError, UnicodeDecodeError."""
    fields = parse_json(text)  # much faster than from_json, which explains what is wrong
    if not isinstance(fields, dict):
        return JobSpec.from_json(text.decode())
    fields = absolute_places({**IN_EARLIER_RUNS, **fields}, folder)
    for name in PLACES:
        place = fields.get(name)
        if isinstance(place, str):
            fields[name] = _in_moved_home(place, folder)
    return JobSpec.parse(fields)


def _in_moved_home(place: str, folder: Path) -> str:
    """Return where a folder is that a job names by its whole path, if its home was moved since."""
    path = Path(place)
    if not path.is_absolute() or path.exists():
        return place
    if path.parts[-len(DEMO_PARTS) :] == DEMO_PARTS:
        return str(DEMO_DIR)
    moved = folder.parent / Path(*path.parts[-2:])
    is_result = path.parent.parent.name == folder.parent.name
    if is_result and moved.exists():
        return str(moved)
    return place


def _read_about(folder: Path) -> Annotations:
    fields = read_json(folder / "about.json")
    tags = fields.get("tags")
    return Annotations(
        title=str(fields.get("title") or ""),
        notes=str(fields.get("notes") or ""),
        tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
    )


@lru_cache(maxsize=20_000)
def _bytes_in(folder: Path, _times: tuple[int, ...]) -> int:
    return bytes_in(folder)
