"""The run folder: creates it, reads it, lists it, removes it. It is the only truth about a run; owns its files and its
states, and never starts a process.

    runs/<id>/  job.json       the job, paths resolved: all that the program needs
                training/      the program, copied: what you see is what runs
                data/          the run's own copy of its rows
                estimate.json  the memory that was predicted
                process.json   who runs it (written by the launcher)
                status.json    state, step, phase, measured peaks (replaced by the program)
                metrics.jsonl  one object per logging step (appended by the program)
                samples.jsonl  answers before and after
                log.txt        what the program printed
                checkpoints/   output/   stop (a request)
"""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from core.dataset import write_lines
from core.device import ProcessId, is_alive
from core.job import JobSpec, Problem, SpecError
from core.resolve import ResolvedJob, reference_of

State = Literal["queued", "starting", "running", "stopping", "finished", "stopped", "failed", "interrupted"]
ACTIVE: frozenset[State] = frozenset({"queued", "starting", "running", "stopping"})
PROGRAM = Path(__file__).parent / "training"
RUN_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")
SECONDS_TO_APPEAR = 20
"""A process that has not written its first status after this long, and is not alive, never came up."""


@dataclass(frozen=True)
class Home:
    """Where runs and uploads live."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def uploads(self) -> Path:
        return self.path / "uploads"

    @classmethod
    def find(cls, path: str | None = None) -> "Home":
        """The folder named, else TAILOR_HOME, else ~/.tailor; made if absent. Raises SpecError if it cannot be."""
        home = cls(Path(path or os.environ.get("TAILOR_HOME") or "~/.tailor").expanduser().absolute())
        try:
            for folder in (home.path, home.runs, home.uploads):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            reason = f"{home.path} cannot be made: {error.strerror}"
            raise SpecError((Problem("home", reason, "name a folder that you can write to"),)) from None
        return home


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
    status: Mapping[str, Any]
    """status.json as the program wrote it; empty before its first word."""

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def step(self) -> int:
        return int(self.status.get("step") or 0)

    @property
    def max_steps(self) -> int:
        return int(self.status.get("max_steps") or 0)

    @property
    def peak_bytes(self) -> int | None:
        """Highest allocated memory so far; on a CPU the highest growth of the process."""
        phases = self.status.get("phase_peak_bytes") or {}
        return self.status.get("peak_allocated_bytes") or max(phases.values(), default=None)

    def to_json(self) -> dict[str, object]:
        """The run as `runs list --json` prints it."""
        last = last_metrics(self.folder)
        return {
            "id": self.id,
            "state": self.state,
            "model": reference_of(self.job.model),
            "stage": self.job.stage,
            "method": self.job.method,
            "dataset": self.job.dataset,
            "created": self.created,
            "step": self.step,
            "max_steps": self.max_steps,
            "loss": last.get("loss"),
            "peak_bytes": self.peak_bytes,
            "error": self.error,
            "folder": str(self.folder),
        }


class RunNotFound(LookupError):
    """No run of that name."""


def create(home: Home, resolved: ResolvedJob, estimate: Mapping[str, object]) -> Run:
    """Makes the folder of a new run, complete or not at all. Raises OSError for a disk that will not take it."""
    run_id = _new_id(home, resolved.job)
    building = home.runs / f".{run_id}"
    try:
        (building / "data").mkdir(parents=True)
        shutil.copytree(PROGRAM, building / "training", ignore=shutil.ignore_patterns("__pycache__"))
        copies = {
            field: _copy(path, building / "data" / ("train.jsonl" if field == "dataset" else "eval.jsonl"))
            for field, path in resolved.datasets.items()
        }
        job = resolved.job.model_copy(update=copies | {"model": resolved.model.location})
        write_json(building / "estimate.json", estimate)
        write_text(building / "job.json", job.to_json())
        building.rename(home.runs / run_id)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return read(home, run_id)


def read(home: Home, run_id: str) -> Run:
    """One run. Raises RunNotFound."""
    folder = home.runs / run_id
    if not RUN_ID.fullmatch(run_id) or folder.is_symlink() or not (folder / "job.json").is_file():
        raise RunNotFound(f"no run named {run_id!r}; `python app.py runs` lists them")
    status = {name: value for name, value in read_json(folder / "status.json").items() if value is not None}
    created = (folder / "job.json").stat().st_mtime
    state, error = _judge(folder, status, created)
    job = JobSpec.from_json((folder / "job.json").read_text(encoding="utf-8"))
    return Run(run_id, folder, job, state, error, created, status)


def list_runs(home: Home) -> tuple[Run, ...]:
    """Every readable run, the newest first."""
    found = []
    for folder in home.runs.iterdir():
        try:
            found.append(read(home, folder.name))
        except (RunNotFound, SpecError, OSError):
            continue  # not a run, or one that is just being removed
    return tuple(sorted(found, key=lambda run: (run.created, run.id), reverse=True))


def process_of(run: Run) -> ProcessId | None:
    """Who executes, or executed, a run."""
    return _process_of(run.folder, run.status)


def delete(home: Home, run_id: str) -> None:
    """Removes a run and all it made. Raises RunNotFound, or SpecError while it is running."""
    run = read(home, run_id)
    if run.is_active:
        raise SpecError((Problem("run", f"{run_id} is {run.state}", "stop it first"),))
    grave = home.runs / f".{run_id}.{secrets.token_hex(4)}"
    run.folder.rename(grave)  # gone from the list at once, however long the removal takes
    shutil.rmtree(grave)


def fields_again(run: Run) -> dict[str, object]:
    """The field values that would ask for the same run again, on the run's own copy of its data."""
    fields = run.job.model_dump()
    copies = {name: str(run.folder / fields[name]) for name in ("dataset", "eval_dataset") if fields[name]}
    return fields | copies | {"model": reference_of(run.job.model)}


def metrics(folder: Path) -> tuple[dict[str, Any], ...]:
    """The rows of metrics.jsonl; a torn last line is left for later."""
    return _complete_rows(folder / "metrics.jsonl")


def samples(folder: Path) -> tuple[dict[str, Any], ...]:
    """The rows of samples.jsonl: {step, prompt, answer}."""
    return _complete_rows(folder / "samples.jsonl")


def log_tail(folder: Path, num_bytes: int = 8000) -> str:
    """The end of log.txt; carriage returns of progress bars are taken as ends of lines."""
    try:
        with (folder / "log.txt").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - num_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    lines = re.split(r"[\r\n]+", text)
    return "\n".join(lines[1:] if size > num_bytes else lines).strip()


def fingerprint(folder: Path) -> str:
    """Changes whenever there is something new to show of a run."""
    marks = []
    for name in ("status.json", "metrics.jsonl", "log.txt", "samples.jsonl"):
        try:
            stat = (folder / name).stat()
            marks.append(f"{stat.st_size}:{stat.st_mtime_ns}")
        except FileNotFoundError:
            marks.append("-")
    return " ".join(marks)


def has_checkpoint(folder: Path) -> bool:
    """True if there is something to resume from."""
    return any((folder / "checkpoints").glob("checkpoint-*/trainer_state.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} if the file is absent or not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replaces a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces a file, whole or not at all."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _judge(folder: Path, status: Mapping[str, Any], created: float) -> tuple[State, str]:
    """The state of a run and what went wrong: as its program says, unless the program is dead and did not say so."""
    said: State = status["state"] if status.get("state") in get_args(State) else "starting"
    if said not in ACTIVE:
        return said, str(status.get("error") or "")
    process = _process_of(folder, status)
    if process is None:
        lost = time.time() - created > SECONDS_TO_APPEAR
        return ("failed", "The training program was never started.") if lost else ("starting", "")
    if is_alive(process):
        return ("stopping" if (folder / "stop").exists() and said != "starting" else said), ""
    if (folder / "stop").exists():
        return "stopped", ""  # ended as asked, before it could say so
    if process.boot_id != ProcessId.this_boot():
        return "interrupted", "The computer was restarted while this run was training."
    last_words = log_tail(folder, 2000).rsplit("\n", 1)[-1]
    return "failed", f"The training program ended without finishing. Its last words: {last_words or 'none'}"


def _process_of(folder: Path, status: Mapping[str, Any]) -> ProcessId | None:
    """As the launcher saw it, whose start time no change of the clock can move; else as the program says of itself."""
    return _process(read_json(folder / "process.json")) or _process(status)


def _process(fields: Mapping[str, Any]) -> ProcessId | None:
    try:
        return ProcessId(int(fields["pid"]), float(fields["pid_start_time"]), str(fields["boot_id"]))
    except (KeyError, TypeError, ValueError):
        return None


def _copy(source: Path, target: Path) -> str:
    """Copies a dataset into the run, a JSON array as lines; returns its path as the program will see it there."""
    write_lines(source, target)
    return f"data/{target.name}"


def _new_id(home: Home, job: JobSpec) -> str:
    """A name that sorts by time and says what it is: 20261122-153000-llama-3.1-8b-lora."""
    model = re.sub(r"[^a-z0-9.]+", "-", Path(job.model).name.lower()).strip("-.")[:40] or "model"
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{job.method}"
    taken = (f"{stem}-{number}" if number > 1 else stem for number in range(1, 10_000))
    return next(name for name in taken if not (home.runs / name).exists())


def _complete_rows(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return ()
    return tuple(row for line in lines if isinstance(row := _row(line), dict))


def _row(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def last_metrics(folder: Path) -> dict[str, Any]:
    """The last row that holds a loss, from the end of the file only."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8000))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    rows = (_row(line) for line in reversed(lines))
    return next((row for row in rows if isinstance(row, dict) and "loss" in row), {})
