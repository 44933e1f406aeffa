"""Create the folder of a new run, complete or not at all. Never starts it."""

import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.job import JobSpec, Problem, SpecError
from core.resolve import ResolvedJob
from core.runs.data import write_data
from core.runs.home import Home
from core.runs.packages import requirements
from core.runs.run import Run, read
from core.runs.suites import write_suites
from core.training.contract.files import write_json, write_text
from core.training.contract.job import relative_places, suite_of

PROGRAM = Path(__file__).parent.parent / "training"
UNFINISHED = re.compile(r"\.\d{8}-\d{6}-.+")
MAX_CREATION_SECONDS = 24 * 3600
"""An older unfinished folder was left behind by a program that died."""
NOTHING_CHECKED: Mapping[Path, str] = MappingProxyType({})
FREE_BYTES_AFTER_RUN = 256 * 2**20
"""Disk space left free for logs, metrics and other programs."""


def create(
    home: Home,
    resolved: ResolvedJob,
    estimate: Mapping[str, Any],
    checked: Mapping[Path, str] = NOTHING_CHECKED,
) -> Run:
    """Create the folder of a new run.

    `checked` holds the SHA-256 of the files whose rows were checked. Raises OSError if the disk
    cannot be written to, SpecError if it has too little space, if the data has changed, or if files
    cannot be mixed.
    """
    _remove_unfinished(home)
    _require_disk_space(home, resolved, estimate)
    folder = reserve(home, resolved.job)
    run_id = folder.name.removeprefix(".")
    try:
        data_fields = write_data(resolved, folder, checked)
        _require_evaluation(resolved.job, data_fields)
        changed_fields = data_fields | write_suites(resolved.job, folder)
        no_cache = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROGRAM, folder / "training", ignore=no_cache)
        job = resolved.job.model_copy(update={**changed_fields, "model": resolved.model.location})
        write_json(folder / "estimate.json", estimate)
        write_text(folder / "requirements.txt", requirements())
        places = relative_places(job.model_dump(), folder, home.path)
        write_text(folder / "job.json", job.model_copy(update=places).to_json())
        folder.rename(home.runs / run_id)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return read(home, run_id)


def _remove_unfinished(home: Home) -> None:
    for folder in home.runs.glob(".*"):
        with suppress(FileNotFoundError):  # completed or removed in the meantime
            age = time.time() - folder.stat().st_mtime
            if UNFINISHED.fullmatch(folder.name) and age > MAX_CREATION_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _require_disk_space(home: Home, resolved: ResolvedJob, estimate: Mapping[str, Any]) -> None:
    """Raise SpecError unless data, result and two checkpoints (old, and being written) fit.

    Its files are copied as well while the data is written.
    """
    sizes = {part["name"]: int(part["bytes"]) for part in estimate.get("components", ())}
    weights = sizes.get("adapters" if resolved.job.trains_adapter else "weights", 0)
    checkpoint = weights + sizes.get("optimizer_states", 0)
    data = sum(path.stat().st_size for path in resolved.datasets.values())
    mixed_in = sum(weight * path.stat().st_size for path, weight in resolved.mix)
    copies = data + sum(path.stat().st_size for path, _weight in resolved.mix)
    # the copies are removed before the training writes anything
    later = max(copies, weights + 2 * checkpoint)
    needed = data + int(mixed_in) + later + FREE_BYTES_AFTER_RUN
    free = shutil.disk_usage(home.runs).free
    if free < needed:
        problem = (
            f"the run needs about {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB is free under {home.runs}"
        )
        raise SpecError(Problem("disk", problem, "free some space, or choose another --home"))


def _require_evaluation(job: JobSpec, data_fields: Mapping[str, object]) -> None:
    """Raise SpecError if the job judges evaluations, but no row of so few was held out."""
    judges = job.keep_best != "off" or job.early_stopping_patience > 0
    judges = judges and suite_of(job.keep_best) is None
    if judges and not data_fields["eval_dataset"]:
        problem = "holds out no row of so few, so nothing says which checkpoint is the best"
        fix = "raise it, give an eval_dataset, or switch keep_best and early_stopping_patience off"
        raise SpecError(Problem("eval_fraction", problem, fix))


def reserve(home: Home, job: JobSpec) -> Path:
    """Return a new folder, named by a dot and the id: .20261122-153000-llama-3.1-8b-lora.

    The dot hides it until it is complete. Ids sort by time.
    """
    model = re.sub(r"[^a-z0-9.]+", "-", Path(job.model).name.lower()).strip("-.")[:40] or "model"
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{job.method}"
    for number in count(1):
        run_id = stem if number == 1 else f"{stem}-{number}"
        folder = home.runs / f".{run_id}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        if not (home.runs / run_id).exists() and not (home.trash / run_id).exists():
            return folder
        folder.rmdir()
    raise AssertionError("count is endless")
