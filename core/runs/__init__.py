"""The run folder: creates it, reads it, lists it, removes it. It is the only truth about a run; owns its files and its
states, and never starts a process.

    runs/<id>/  job.json          the job, paths resolved: all that the program needs
                training/         the program, copied: what you see is what runs
                data/             the run's own copy of its rows, with their hashes in manifest.json
                requirements.txt  the versions of the training's packages
                estimate.json     the memory that was predicted
                process.json      who runs it (written by the launcher)
                exit.json         how that process ended (written by the launcher, if it saw the end)
                status.json       state, step, phase, measured peaks (replaced by the program)
                metrics.jsonl     one object per logging step (appended by the program)
                samples.jsonl     answers before and after
                about.json        title, notes and tags (written by people)
                log.txt           what the program printed; of very much, the beginning and the end
                checkpoints/      output/   stop (a request)
"""

import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from core.job import JobSpec, Problem, SpecError
from core.resolve import ResolvedJob
from core.runs.about import annotate, delete, deleted, disk_bytes, empty_trash, restore
from core.runs.bundle import requirements, write_bundle
from core.runs.checkpoints import checkpoints, has_checkpoint
from core.runs.comparison import Difference, compare
from core.runs.curves import Curve, read_curves
from core.runs.data import write_data, writer_of_rows
from core.runs.files import log_tail, number_in, read_json, read_rows
from core.runs.home import Home, Schedule, locked, read_schedule, write_schedule
from core.runs.listing import list_fingerprint, list_runs, search, unreadable
from core.runs.run import (
    RUN_ID,
    About,
    Run,
    fields_again,
    fields_of_next_stage,
    last_metrics,
    read,
)
from core.runs.states import num_oom_kills
from core.runs.uploads import keep, kept_rows, new_folder
from core.training.contract.files import sha256_of, write_json, write_text
from core.training.contract.states import ACTIVE, ENDED, TRANSITIONS, State

__all__ = [
    "ACTIVE",
    "ENDED",
    "RUN_ID",
    "TRANSITIONS",
    "About",
    "Curve",
    "Difference",
    "Home",
    "Run",
    "Schedule",
    "State",
    "annotate",
    "checkpoints",
    "compare",
    "create",
    "delete",
    "deleted",
    "disk_bytes",
    "empty_trash",
    "fields_again",
    "fields_of_next_stage",
    "fingerprint",
    "has_checkpoint",
    "keep",
    "kept_rows",
    "last_metrics",
    "list_fingerprint",
    "list_runs",
    "locked",
    "log_tail",
    "metrics",
    "new_folder",
    "num_oom_kills",
    "number_in",
    "read",
    "read_curves",
    "read_json",
    "read_schedule",
    "restore",
    "samples",
    "search",
    "unreadable",
    "write_bundle",
    "write_json",
    "write_schedule",
    "write_text",
    "writer_of_rows",
]

PROGRAM = Path(__file__).parent.parent / "training"
HALF_MADE = re.compile(r"\.\d{8}-\d{6}-.+")
SECONDS_TO_MAKE = 24 * 3600
"""What is still half made after this long was left behind by a program that died."""
SPARE_BYTES = 256 * 2**20
"""Left free on the disk for logs, metrics and everybody else."""


def create(home: Home, resolved: ResolvedJob, estimate: Mapping[str, Any]) -> Run:
    """Makes the folder of a new run, complete or not at all.

    Raises OSError for a disk that will not take it, SpecError for one without room, for data that has changed and for
    files that cannot be mixed.
    """
    _sweep(home)
    _require_room(home, resolved, estimate)
    _require_same_data(resolved)
    building = _reserve(home, resolved.job)
    run_id = building.name.removeprefix(".")
    try:
        settled = write_data(resolved, building)
        shutil.copytree(
            PROGRAM, building / "training", ignore=shutil.ignore_patterns("__pycache__")
        )
        job = resolved.job.model_copy(update=settled | {"model": resolved.model.location})
        write_json(building / "estimate.json", estimate)
        write_text(building / "requirements.txt", requirements())
        write_text(building / "job.json", job.to_json())
        building.rename(home.runs / run_id)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return read(home, run_id)


def metrics(folder: Path) -> tuple[dict[str, Any], ...]:
    """The rows of metrics.jsonl; a torn last line is left for later. For plots see `read_curves`."""
    return read_rows(folder / "metrics.jsonl")


def samples(folder: Path) -> tuple[dict[str, Any], ...]:
    """The rows of samples.jsonl: {step, prompt, answer}."""
    return read_rows(folder / "samples.jsonl")


def fingerprint(folder: Path) -> str:
    """Changes whenever there is something new to show of a run: a file replaced, or one that grew."""
    marks = []
    for path in (
        folder,
        *(folder / name for name in ("metrics.jsonl", "log.txt", "samples.jsonl")),
    ):
        try:
            stat = path.stat()
            marks.append(f"{stat.st_size}:{stat.st_mtime_ns}")
        except FileNotFoundError:
            marks.append("-")
    return " ".join(marks)


def _sweep(home: Home) -> None:
    """Removes what programs that died have left half made: copies of data that nothing shows."""
    for folder in home.runs.glob(".*"):
        with suppress(FileNotFoundError):  # made whole, or removed, meanwhile
            if (
                HALF_MADE.fullmatch(folder.name)
                and time.time() - folder.stat().st_mtime > SECONDS_TO_MAKE
            ):
                shutil.rmtree(folder, ignore_errors=True)


def _require_room(home: Home, resolved: ResolvedJob, estimate: Mapping[str, Any]) -> None:
    """Raises SpecError if the disk cannot take the data, the result and two checkpoints: one old, one being written."""
    sizes = {part["name"]: int(part["bytes"]) for part in estimate.get("components", ())}
    weights = sizes.get("adapters" if resolved.job.trains_adapter else "weights", 0)
    weighted = (*((path, 1.0) for path in resolved.datasets.values()), *resolved.mix)
    data = int(sum(weight * path.stat().st_size for path, weight in weighted))
    needed = data + weights + 2 * (weights + sizes.get("optimizer_states", 0)) + SPARE_BYTES
    free = shutil.disk_usage(home.runs).free
    if free < needed:
        problem = f"the run needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB is free under {home.runs}"
        raise SpecError(Problem("disk", problem, "free some, or name another place with --home"))


def _require_same_data(resolved: ResolvedJob) -> None:
    """Raises SpecError if the file is not the one that the job was made for."""
    wanted, path = resolved.job.dataset_sha256, resolved.datasets.get("dataset")
    if wanted and path and (found := sha256_of(path)) != wanted:
        problem = f"{path.name} has changed: its SHA-256 is {found[:12]}…, the job was made for {wanted[:12]}…"
        raise SpecError(Problem("dataset", problem, "empty dataset_sha256 to take it as it is"))


def _reserve(home: Home, job: JobSpec) -> Path:
    """An empty folder to build a run in, hidden by the dot before its id.

    The id sorts by time and says what it is: 20261122-153000-llama-3.1-8b-lora.
    """
    model = re.sub(r"[^a-z0-9.]+", "-", Path(job.model).name.lower()).strip("-.")[:40] or "model"
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{job.method}"
    names = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
    return next(building for name in names if (building := _claim(home, name)))


def _claim(home: Home, run_id: str) -> Path | None:
    """The folder to build a run of that id in; None if another has the id, or is being built under it."""
    building = home.runs / f".{run_id}"
    try:
        building.mkdir()
    except FileExistsError:
        return None
    if (home.runs / run_id).exists() or (home.trash / run_id).exists():
        building.rmdir()
        return None
    return building
