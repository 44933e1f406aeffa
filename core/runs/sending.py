"""Send runs to clusters, where each continues from its newest checkpoint. Asks nothing later.

A cluster may take minutes to answer, so no lock of the home is held then: a run is reserved under
it, and belongs to its sender until the answer is in its folder.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
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
    write_submission,
)
from core.runs.engines import script as submit_script
from core.runs.engines.submission import being_sent, forget
from core.runs.home import Home, locked
from core.runs.run import Run, read
from core.runs.states import active_problem, is_asked_by_user
from core.training.contract.files import write_json

OF_EARLIER_ATTEMPTS = ("stop", "exit.json", "status.json", "process.json")
SCRIPT_ASIDE = ".submit.sh.before"
"""Script for other settings, while its run is being sent."""
SENDING = ClusterState("sending", "being sent")
UNSENT = ClusterState("unsent", "not taken")


def send(home: Home, runs: Sequence[Run], placement: Placement, script: Path | None = None) -> None:
    """Send runs to a cluster. Must not be called with a lock held.

    A submit.sh stays as it is; one for other settings is kept beside the new one. With `script`, a
    place for one, runs of one size are a single job, if the cluster has such jobs, and those that
    another program has started by now are left out. Raises SpecError: a run that was not sent is
    what it was; if it is new, it has failed and keeps where it shall train. One that the cluster
    was not asked for stays new. Raises OSError.
    """
    engine = engine_of(placement)
    unseen = clusters.look_from_a_node(home, placement)
    now = _to_send(home, runs, leaves_begun=bool(script))
    last_jobs = {run.id: clusters.last_job(run) for run in now}
    taken: list[Submission] = []
    untried: set[str] = set()
    try:
        with ExitStack() as stack:
            with locked(home):
                now = _to_send(home, runs, leaves_begun=bool(script))
                for run in now:
                    _require_unchanged(run, last_jobs.get(run.id))
                for run in now:
                    stack.enter_context(_reserved(run, placement, untried))
            if unseen:
                raise SpecError(unseen)
            for run in now:
                placement.require_devices(run.job.num_devices)
            for run, job_id in _hand_over(engine, now, placement, script, untried):
                taken.append(_kept_answer(run, placement, job_id))
    except (SpecError, OSError) as error:
        if not taken:
            raise
        raise _partly_sent(taken, len(now), error) from error
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
        raise SpecError(active_problem(run.folder, run.state))
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
def _reserved(run: Run, placement: Placement, untried: Collection[str]) -> Iterator[None]:
    """Reserve a run for this program, without the files of its earlier attempts. The caller must
    hold the lock of the home when this begins, and not when it ends.

    If the run cannot be sent, it is what it was before. A new run has failed then, with the reason,
    unless it is among the `untried` by then. A program that dies here leaves a run without an
    answer, as states.py knows it.
    """
    folder = run.folder
    before = read_submission(folder)
    with being_sent(folder):
        inode = folder.stat().st_ino
        reservation = Submission(folder, placement, "", time.time(), inode, SENDING)
        try:
            write_submission(reservation)
            clusters.follow(run)
            if before and not before.has_answer:
                # A job whose id was lost does not train beside the new one.
                submit_script.renew_token(folder)
            _put_aside(folder, keeps_script=before is not None and before.placement == placement)
            yield
        except (SpecError, OSError) as error:
            if read_submission(folder) != reservation:  # the cluster has taken it
                raise
            _give_back(reservation, before, None if run.id in untried else error)
            run.home.touch()
            raise
        finally:
            for name in OF_EARLIER_ATTEMPTS:
                _aside(folder / name).unlink(missing_ok=True)
            submit_script.keep_earlier(folder, SCRIPT_ASIDE)


def _aside(path: Path) -> Path:
    """Return where a file of an earlier attempt is while its run is being sent."""
    return path.with_name(f".{path.name}.before")


def _put_aside(folder: Path, *, keeps_script: bool) -> None:
    """Rename the files of earlier attempts, which needs no space on a full disk."""
    for name in OF_EARLIER_ATTEMPTS:
        _aside(folder / name).unlink(missing_ok=True)  # of a sender that has died
        if (folder / name).exists():
            (folder / name).replace(_aside(folder / name))
    submit_script.keep_earlier(folder, SCRIPT_ASIDE)
    if not keeps_script and (folder / submit_script.NAME).exists():
        (folder / submit_script.NAME).replace(folder / SCRIPT_ASIDE)


def _give_back(
    reservation: Submission, before: Submission | None, error: SpecError | OSError | None
) -> None:
    """Make a run that was not sent what it was before its reservation. None as error means that the
    cluster was not asked for it."""
    folder = reservation.folder
    for name in OF_EARLIER_ATTEMPTS:
        if _aside(folder / name).exists():
            _aside(folder / name).replace(folder / name)
    is_new = before is None and not (folder / "status.json").exists()
    is_refused_again = before is not None and before.was_not_taken
    keeps_place = bool(error) and (is_new or is_refused_again)
    if (folder / SCRIPT_ASIDE).exists() and not keeps_place:
        (folder / SCRIPT_ASIDE).replace(folder / submit_script.NAME)
    # The cluster may have the job all the same, and start it later.
    submit_script.renew_token(folder)
    if keeps_place:
        write_submission(replace(reservation, state=UNSENT))
    elif before:
        write_submission(before)
    else:
        forget(folder)
    if error and (is_refused_again or not (folder / "status.json").exists()):
        reason = f"{_reason_of(error)}."
        write_json(folder / "status.json", {"state": "failed", "error": reason})


def _reason_of(error: SpecError | OSError) -> str:
    if isinstance(error, SpecError):
        return error.reason
    return error.strerror or str(error)


def _partly_sent(taken: Sequence[Submission], count: int, error: SpecError | OSError) -> SpecError:
    """Return the error of runs of which a cluster has taken some: how many, and why no more."""
    jobs = ", ".join(each.name for each in taken)
    were_sent = "was sent" if len(taken) == 1 else "were sent"
    go_on = "continues" if len(taken) == 1 else "continue"
    rest = count - len(taken)
    were_not = "was not" if rest == 1 else "were not"
    problem = f"{len(taken)} of {count} {were_sent} ({jobs}) and {go_on}; {rest} {were_not}"
    field, fix = "on", "make room, and send them again"
    if isinstance(error, SpecError):
        field, fix = error.problems[0].field, error.problems[0].fix
    return SpecError(Problem(field, f"{problem}: {_reason_of(error)}", fix))


def _hand_over(
    engine: Engine,
    runs: Sequence[Run],
    placement: Placement,
    script: Path | None,
    untried: set[str],
) -> Iterator[tuple[Run, str]]:
    """Yield each run that the cluster has taken, with the id of its job. `untried` gets those that
    it was not asked for yet. Raises SpecError."""
    num_devices = {run.job.num_devices for run in runs}
    if script and engine.submit_array and len(runs) > 1 and len(num_devices) == 1:
        folders = [run.folder for run in runs]
        job_ids = engine.submit_array(folders, placement, num_devices.pop(), script)
        yield from zip(runs, job_ids, strict=True)
        return
    untried |= {run.id for run in runs}
    for run in runs:
        untried.discard(run.id)
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
