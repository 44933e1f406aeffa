"""Runs on clusters: ask about them, stop them. Never trains anything on this machine.

What a cluster says is kept in the run folder, so that a run can be read without asking. Any process
may ask; `refresh` limits how often. No lock is held while a cluster is asked.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from core.job import Problem, RunNotFound, SpecError
from core.runs.engines import (
    ENGINES,
    ClusterSilent,
    ClusterState,
    Placement,
    Submission,
    read_submission,
    why_not_seen,
    write_submission,
)
from core.runs.files import number_in, read_json
from core.runs.home import Home, locked, read_schedule, write_schedule
from core.runs.run import Run, read
from core.runs.states import is_asked_by_user
from core.training.contract.files import write_json
from core.training.contract.status import ENDED

SECONDS_BETWEEN_QUESTIONS = 3.0
SECONDS_AFTER_SILENCE = 15.0
"""Time until a cluster that did not answer is asked again."""
SECONDS_TO_EXIT, SECONDS_BETWEEN_LOOKS = 20.0, 0.5
SECONDS_TO_STOP = 600
"""Time for a program on a cluster to save a checkpoint after a stop request."""
SECONDS_OF_AN_ANSWER = 60.0
"""Time for which the answer of a node holds: a run is created and sent, or several are."""
_next_question: dict[Home, float] = {}
"""Home -> monotonic clock at which its clusters may be asked again by this process."""
_answers: dict[tuple[Home, Placement], tuple[float, Problem | None]] = {}
"""Home and placement -> monotonic clock of an answer, and what was wrong."""


def look_from_a_node(home: Home, placement: Placement) -> Problem | None:
    """Return what is wrong if a free node of the cluster says that it does not see the home.

    Must not be called with the lock held: a node may take seconds to answer. Where none is free,
    submit.sh looks once the run has its turn.
    """
    engine = ENGINES.get(placement.engine)
    if engine is None:
        return None
    asked, problem = _answers.get((home, placement), (0.0, None))
    if not asked or time.monotonic() - asked > SECONDS_OF_AN_ANSWER:
        problem = why_not_seen(home.path, partial(engine.blind_nodes, placement))
        _answers[home, placement] = (time.monotonic(), problem)
    return problem


def follow(run: Run) -> None:
    """Ask about a run from now on. The caller must hold the lock."""
    schedule = read_schedule(run.home)
    submitted = tuple(dict.fromkeys((*schedule.submitted, run.id)))
    write_schedule(run.home, replace(schedule, submitted=submitted))
    _next_question.pop(run.home, None)
    run.home.touch()


def refresh(home: Home) -> None:
    """Ask the clusters about the runs that were sent to them, if it is time to.

    Must not be called with the lock held: a cluster may take long to answer.
    """
    names = read_schedule(home).submitted
    if not names or time.monotonic() < _next_question.get(home, 0):
        return
    _next_question[home] = time.monotonic() + SECONDS_BETWEEN_QUESTIONS
    found = [read_submission(home.runs / name) for name in names if (home.runs / name).is_dir()]
    submissions = [each for each in found if each and each.has_answer]
    states: dict[str, ClusterState] = {}
    for (engine, _address), asked in _by_cluster(submissions).items():
        try:
            states |= ENGINES[engine].ask(asked)
        except ClusterSilent as silence:
            _next_question[home] = time.monotonic() + SECONDS_AFTER_SILENCE
            for each in asked:
                kept = replace(each.state, is_silent=True, reason=str(silence))
                states[each.folder.name] = kept
    # Another process that holds the lock asks for itself; on a full disk the next time may do.
    with suppress(SpecError, OSError), locked(home, seconds=0):
        for each in submissions:
            _note(each, states[each.folder.name])
        _let_go_of_ended(home)
    for each in submissions:
        if states[each.folder.name].stage == "running":
            _enforce_stop(each)


def _by_cluster(submissions: Sequence[Submission]) -> Mapping[tuple[str, str], list[Submission]]:
    """Return the jobs of each cluster: that one is silent says nothing of another."""
    found: dict[tuple[str, str], list[Submission]] = {}
    for each in submissions:
        found.setdefault((each.placement.engine, each.placement.address), []).append(each)
    return found


def wait_for_exit(run: Run) -> None:
    """Wait for the end of a job whose program has written that it has ended, for some seconds."""
    submission = run.submission
    if submission is None or run.state not in ENDED:
        return
    if submission.state.stage == "ended" or not submission.has_answer:
        return
    engine = ENGINES[submission.placement.engine]
    deadline = time.monotonic() + SECONDS_TO_EXIT
    while time.monotonic() < deadline:
        try:
            stage = engine.ask([submission])[submission.folder.name].stage
        except ClusterSilent:
            return
        if stage != "running":
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def note_stop(run: Run, reason: str) -> bool:
    """Write the file by which the program of a run on a cluster learns that it shall stop. Return
    False if it is there. The caller must hold the lock, and call `tell_stop` without it.
    """
    if is_asked_by_user(run.folder):
        return False
    write_json(run.folder / "stop", {"time": time.time(), "reason": reason})
    run.home.touch()
    return True


def tell_stop(run: Run) -> None:
    """Let a cluster wake the program of a run that shall stop, or take it out of its queue.

    A cluster that does not answer now is no matter: the program finds the file `stop`. Nor is a
    run that another program is sending: that one tells it.
    """
    submission = read_submission(run.folder)
    if submission and submission.has_answer:
        with suppress(ClusterSilent):
            ENGINES[submission.placement.engine].stop(submission)
        _next_question.pop(run.home, None)


def last_job(run: Run) -> Submission | None:
    """Return the job that a run had last. Raises SpecError while the cluster still has it, or does
    not answer."""
    submission = read_submission(run.folder)
    if submission is None or not submission.has_answer:
        return submission
    try:
        states = ENGINES[submission.placement.engine].ask([submission])
    except ClusterSilent as silence:
        problem = f"the cluster does not answer: {silence}"
        raise SpecError(Problem("on", problem, "try again later")) from None
    state = states[submission.folder.name]
    is_by_hand_and_new = not submission.job_id and state.stage == "waiting"
    if state.stage != "ended" and not is_by_hand_and_new:
        problem = f"{submission.name} of this run is still {state.words}"
        raise SpecError(Problem("run", problem, "stop it first, or wait until it has ended"))
    return submission


def is_same_job(one: Submission | None, other: Submission | None) -> bool:
    """Return True for one job as it was kept at two moments, or for none at both."""
    if one is None or other is None:
        return one is other
    return (one.job_id, one.submitted) == (other.job_id, other.submitted)


def _note(asked: Submission, state: ClusterState) -> None:
    """Keep what a cluster said of a job, unless the run has another job by now."""
    now = read_submission(asked.folder)
    if now is None or not is_same_job(now, asked):
        return
    if now.state.stage == "ended" and state.stage == "ended":
        state = replace(state, ended=now.state.ended)
    if state != now.state:
        write_submission(replace(now, state=state))


def _enforce_stop(submission: Submission) -> None:
    """Cancel a job whose program has not ended in time after a stop request.

    An empty `stop` file, which a user may create by hand, sets no limit.
    """
    requested = number_in(read_json(submission.folder / "stop"), "time")
    if requested is not None and time.time() - requested > SECONDS_TO_STOP:
        with suppress(ClusterSilent):
            ENGINES[submission.placement.engine].cancel(submission)


def _let_go_of_ended(home: Home) -> None:
    """Ask no more about runs that are over, gone, or started here in the meantime."""
    schedule = read_schedule(home)
    kept = tuple(name for name in schedule.submitted if _is_on_cluster(home, name))
    if kept != schedule.submitted:
        write_schedule(home, replace(schedule, submitted=kept))
        home.touch()


def _is_on_cluster(home: Home, name: str) -> bool:
    try:
        run = read(home, name)
    except (RunNotFound, SpecError):
        return False
    if run.submission is None or run.submission.was_not_taken:
        return False
    return run.state not in ENDED or run.submission.state.stage != "ended"
