"""Send runs to clusters, where each continues from its newest checkpoint. Asks nothing later.

A cluster may take minutes to answer, so no lock of the home is held then: a run is reserved under
it, and belongs to its sender until the answer is in its folder.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from core.job import Problem, SpecError
from core.runs import clusters
from core.runs.engines import (
    ClusterSilent,
    ClusterState,
    Engine,
    Placement,
    Submission,
    engine_of,
    read_submission,
    renew_token,
    write_submission,
)
from core.runs.engines.submission import being_sent, forget
from core.runs.files import read_bytes
from core.runs.home import Home, locked
from core.runs.run import Run, read
from core.runs.states import is_asked_by_user
from core.training.contract.files import write_json

OF_EARLIER_ATTEMPTS = ("stop", "exit.json", "status.json", "process.json")
SENDING = ClusterState("sending", "being sent")


def send(home: Home, runs: Sequence[Run], placement: Placement, script: Path | None = None) -> None:
    """Send runs to a cluster. Must not be called with a lock held.

    A submit.sh stays as it is unless it is for other settings. With `script`, a place for one, runs
    of one size are a single job, if the cluster has such jobs, and those that another program has
    started by now are left out. Raises SpecError: a run that was not sent is what it was, or
    failed if it is new. Raises OSError.
    """
    engine = engine_of(placement)
    unseen = clusters.look_from_a_node(home, placement)
    now = _to_send(home, runs, leaves_begun=bool(script))
    last_jobs = {run.id: clusters.last_job(run) for run in now}
    taken: list[Submission] = []
    try:
        with ExitStack() as stack:
            with locked(home):
                now = _to_send(home, runs, leaves_begun=bool(script))
                for run in now:
                    _require_unchanged(run, last_jobs.get(run.id))
                for run in now:
                    stack.enter_context(_reserved(run, placement))
            if unseen:
                raise SpecError(unseen)
            for run in now:
                placement.require_devices(run.job.num_devices)
            for run, job_id in _hand_over(engine, now, placement, script):
                taken.append(_kept_answer(run, placement, job_id))
    finally:
        for submission in taken:
            _stop_if_asked(engine, submission)


def _to_send(home: Home, runs: Sequence[Run], *, leaves_begun: bool) -> Sequence[Run]:
    """Return runs as they are now, without those that have begun if these are left out."""
    now = [read(home, run.id) for run in runs]
    return [run for run in now if not (leaves_begun and has_begun(run))]


def has_begun(run: Run) -> bool:
    """Return True for a run that waits for its device or trains, not for one that is new."""
    was_started = run.submission or (run.folder / "process.json").exists()
    return run.is_active and (run.state != "starting" or bool(was_started))


def require_may_start(run: Run) -> None:
    """Raise SpecError for a run that is active or finished."""
    if has_begun(run):
        raise SpecError(Problem("run", f"{run.id} is {run.state}", "stop it first"))
    if run.state == "finished":
        fix = "only a run that ended early can be resumed"
        raise SpecError(Problem("run", f"{run.id} is {run.state}", fix))


def _require_unchanged(run: Run, last: Submission | None) -> None:
    """Raise SpecError if a run may not start, or has another job than the one that has ended."""
    require_may_start(run)
    if not clusters.is_same_job(run.submission, last):
        problem = f"{run.id} was sent by another program"
        raise SpecError(Problem("run", problem, "see `python app.py runs queue`"))


@contextmanager
def _reserved(run: Run, placement: Placement) -> Iterator[None]:
    """Reserve a run for this program, without the files of its earlier attempts. The caller must
    hold the lock of the home when this begins, and not when it ends.

    If the run cannot be sent, it is what it was before. A new run has failed then, with the reason.
    A program that dies here leaves a run without an answer, as states.py knows it.
    """
    folder = run.folder
    before = read_submission(folder)
    kept = {name: read_bytes(folder / name) for name in OF_EARLIER_ATTEMPTS}
    with being_sent(folder):
        inode = folder.stat().st_ino
        reservation = Submission(folder, placement, "", time.time(), inode, SENDING)
        try:
            write_submission(reservation)
            clusters.follow(run)
            if before and not before.has_answer:
                renew_token(folder)  # a job whose id was lost does not train beside the new one
            for name in kept:
                (folder / name).unlink(missing_ok=True)
            if before is None or before.placement != placement:
                (folder / "submit.sh").unlink(missing_ok=True)
            yield
        except (SpecError, OSError) as error:
            if read_submission(folder) != reservation:  # the cluster has taken it
                raise
            _give_back(run, before, kept, error)
            raise


def _give_back(
    run: Run, before: Submission | None, kept: dict[str, bytes], error: SpecError | OSError
) -> None:
    """Make a run that was not sent what it was before its reservation."""
    renew_token(run.folder)  # the cluster may have the job all the same, and start it later
    for name, content in kept.items():
        if content:
            (run.folder / name).write_bytes(content)
    if not kept["status.json"]:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        write_json(run.folder / "status.json", {"state": "failed", "error": f"{reason}."})
    if before:
        write_submission(before)
    else:
        forget(run.folder)
    run.home.touch()


def _hand_over(
    engine: Engine, runs: Sequence[Run], placement: Placement, script: Path | None
) -> Iterator[tuple[Run, str]]:
    """Yield each run that the cluster has taken, with the id of its job. Raises SpecError."""
    num_devices = {run.job.num_devices for run in runs}
    if script and engine.submit_array and len(runs) > 1 and len(num_devices) == 1:
        folders = [run.folder for run in runs]
        job_ids = engine.submit_array(folders, placement, num_devices.pop(), script)
        yield from zip(runs, job_ids, strict=True)
        return
    for run in runs:
        yield run, engine.submit(run.folder, placement, run.job.num_devices)


def _kept_answer(run: Run, placement: Placement, job_id: str) -> Submission:
    """Note the job of a run, and return it. Raises OSError."""
    inode = run.folder.stat().st_ino
    submission = Submission(run.folder, placement, job_id, time.time(), inode)
    write_submission(submission)
    run.home.touch()
    return submission


def _stop_if_asked(engine: Engine, submission: Submission) -> None:
    """Take a job back whose run was to stop while it was sent.

    A program that asks it to stop writes that file, then looks for the job; this one has written
    the job, then looks for the file: at least one sees what the other wrote.
    """
    if is_asked_by_user(submission.folder):
        with suppress(ClusterSilent):
            engine.stop(submission)
