"""Resume a run that ended early on another number of devices. Starts it; never waits for it.

An optimizer step keeps its rows. A model that was divided stays divided, and one that was not
stays whole. The estimate follows.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from core.job import JobSpec, Problem, SpecError
from core.resolve import resolve
from core.runs import queue
from core.runs.edits import require_ended
from core.runs.engines import Placement, script
from core.runs.estimates import EARLIER, NOW, replace_estimate
from core.runs.files import read_bytes, read_json
from core.runs.home import Home, locked
from core.runs.past_runs import forecast, past_runs
from core.runs.run import Run, read
from core.training.contract.files import write_content, write_json
from core.training.contract.job import is_sharded

CHANGED_FILES = ("job.json", NOW, EARLIER, script.NAME, script.EARLIER)


def resume_on(home: Home, run: Run, num_devices: object, placement: Placement | None = None) -> Run:
    """Resume a run on so many devices where it trained before, or at another place.

    If it cannot be started there, it stays what it was. Raises RunNotFound, SpecError, OSError.
    """
    before = {name: read_bytes(run.folder / name) for name in CHANGED_FILES}
    place = placement or run.placement
    changed = change_num_devices(home, run.id, num_devices, place.nodes)
    try:
        place.require_devices(num_devices)
        return queue.submit(home, changed, placement)
    except (SpecError, OSError):
        if changed.job != run.job:
            with locked(home):
                now = read(home, run.id)
                if not now.is_active:
                    # A new run that was refused keeps the place that it was refused at.
                    lost = () if now.placement == run.placement else (script.NAME,)
                    _put_back(run.folder, {**before, **dict.fromkeys(lost, b"")})
                    home.touch()
        raise


def change_num_devices(home: Home, run_id: str, number: object, nodes: int | None = None) -> Run:
    """Let a run that has ended continue on another number of devices of each node, by default of as
    many nodes as before. An optimizer step keeps its rows; submit.sh is written again beside the
    earlier one, and so is the estimate.

    Raises RunNotFound, SpecError if that cannot be.
    """
    run = read(home, run_id)
    _require_ended_early(home, run)
    changes = _on_devices(run, number, run.placement.nodes if nodes is None else nodes)
    if not changes:
        return run
    estimate = _estimate(run, changes)
    with locked(home):
        _require_ended_early(home, read(home, run_id))
        path = run.folder / "job.json"
        write_json(path, {**read_json(path), **changes})
        complete = [each.step for each in run.checkpoints if each.is_complete]
        replace_estimate(run.folder, estimate, run.status, max(complete, default=0))
        script.keep_earlier(run.folder)
        home.touch()
    return read(home, run_id)


def _put_back(folder: Path, before: Mapping[str, bytes]) -> None:
    """Give files the content that they had."""
    for name, content in before.items():
        if content:
            write_content(folder / name, content)
        else:
            (folder / name).unlink(missing_ok=True)
    script.renew_token(folder)  # the script names a text that a refusal may have renewed


def _require_ended_early(home: Home, run: Run) -> None:
    require_ended(home, run.id)
    if run.state == "finished":
        raise SpecError(Problem("run", f"{run.id} is finished", "see `runs continue`"))


def stays_divided(run: Run) -> bool:
    """Return True if a checkpoint of a run holds a model that was divided among devices."""
    return run.has_checkpoint and is_sharded(_count(run), run.job.parallelism)


def _count(run: Run) -> int:
    """Return the number of devices of all nodes of a run."""
    return run.job.num_devices * run.placement.nodes


def _on_devices(run: Run, number: object, nodes: int) -> Mapping[str, object]:
    """Return the fields that let a run continue on so many devices of each node, none if they are
    as many as before. Raises SpecError."""
    job, before = run.job, _count(run)
    num_devices = JobSpec.parse({**job.model_dump(), "num_devices": number}).num_devices
    after = num_devices * nodes
    if num_devices == job.num_devices and after == before:
        return {}
    if after < (2 if stays_divided(run) else 1):
        problem = f"{after} cannot continue this run"
        fix = "give 1 or more"
        if after:
            problem, fix = f"{problem}, whose model is divided among devices", "give 2 or more"
        raise SpecError(Problem("num_devices", problem, fix))
    is_divided = is_sharded(before, job.parallelism) and after > 1
    fields = {"num_devices": num_devices, "parallelism": "fsdp" if is_divided else "ddp"}
    num_rows = job.effective_batch_size * before
    rows_of_each, rest = divmod(num_rows, after)
    if rest:
        problem = f"{after} devices cannot share the {num_rows} rows of an optimizer step"
        raise SpecError(Problem("num_devices", problem, "give another number"))
    size = min(job.per_device_train_batch_size, rows_of_each)
    while rows_of_each % size:
        size -= 1
    batch = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": rows_of_each // size,
    }
    JobSpec.parse({**job.model_dump(), **fields, **batch})
    return {**fields, **batch}


def _estimate(run: Run, changes: Mapping[str, object]) -> dict[str, Any]:
    """Return the estimate of a run on other devices, {} if there is none, such as for the cards of
    a cluster that this machine stands for."""
    rows = run.prediction().rows
    with suppress(SpecError):
        fields = {**run.fields_again(), **changes}
        resolved = resolve(fields, rows=rows, past=partial(past_runs, run.home))
        return forecast(run.home, resolved)
    return {}
