"""Infer the state of a run from its files, and why its program ended. Changes nothing."""

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from core.device import is_alive, this_boot
from core.job import Problem
from core.runs.engines import ClusterState, Submission, read_submission
from core.runs.engines.submission import Stage
from core.runs.files import log_tail, number_in, read_bytes, read_json
from core.training.contract.process_id import ProcessId, is_same_boot
from core.training.contract.status import ENDED, State, Status

SECONDS_TO_BE_SEEN = 10
"""Time in which the last words of a program on another machine reach this one."""
SECONDS_TO_APPEAR = 20
"""A run that has no process after this long will never have one: its launcher died."""
SECONDS_TO_STOP_UNSEEN = 600
"""A run that was asked to stop is given up after so long, if its cluster does not answer."""
LOST = "Resume it to send it again: a job that is there all the same will not train."
UNSEEN = "Nothing says whether the program still runs: look there before it is resumed elsewhere."


@dataclass(frozen=True)
class RunState:
    """State of a run and what went wrong."""

    state: State
    error: str = ""
    """Sentence for users."""
    cause: str = ""
    """Name of the failure, as in failures.CAUSES."""
    process: ProcessId | None = None
    """Process that executes the run, if one does."""


SIGNALS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "SIGKILL": ("was killed (SIGKILL), by a user or because main memory was full", "signal"),
        "SIGTERM": ("was told to end by another program (SIGTERM)", "signal"),
        "SIGINT": ("was interrupted (SIGINT)", "signal"),
        "SIGHUP": ("lost its terminal (SIGHUP)", "signal"),
        "SIGSEGV": ("crashed in a library (SIGSEGV)", "signal"),
        "SIGBUS": ("could not reach a file (SIGBUS): the disk may be full", "disk_full"),
        "SIGILL": ("used an instruction that this processor does not have (SIGILL)", "signal"),
        "SIGABRT": ("was aborted by a library (SIGABRT)", "signal"),
        "SIGFPE": ("was ended by an arithmetic error in a library (SIGFPE)", "signal"),
    }
)
"""Signal that ended a program without a request from here -> (how it ended, cause)."""
COPIED = "This is a copy of a run that was training. Resume it to continue from its checkpoint."
FIXES: Mapping[State, str] = MappingProxyType(
    {
        "queued": "take it out of the queue first",
        "stopping": "wait until it has saved its checkpoint and stopped",
    }
)
"""State in which a run cannot be changed or resumed -> what to do. For all others: stop it."""
OUT_OF_MEMORY = ("was ended by the kernel because main memory was full", "out_of_memory")


def active_problem(folder: Path, state: State) -> Problem:
    """Return why an active run cannot be changed or resumed now, and what to do about it."""
    run_id, submission = folder.name, read_submission(folder)
    if state == "queued" and submission:
        stop = f"stop it first: python app.py runs stop {run_id}"
        if submission.state.stage == "sending":
            title = submission.placement.title
            fix = f"wait until {title} has answered, or {stop}"
            return Problem("run", f"{run_id} is being sent to {title}", fix)
        return Problem("run", f"{run_id} waits on {submission.name}", stop)
    return Problem("run", f"{run_id} is {state}", FIXES.get(state, "stop it first"))


def infer_state(folder: Path, status: Status, created: float) -> RunState:
    """Return the state of a run that does not wait in the queue.

    It is what its program last wrote, unless that program is dead and did not write how it ended.
    """
    submission = read_submission(folder)
    if submission and not submission.was_not_taken:
        if not submission.has_answer:
            return _state_without_job(submission, status)
        return _state_on_cluster(submission, submission.state, status)
    if status.state in ENDED:
        return RunState(status.state, status.error or "", status.cause or "")
    launch = read_json(folder / "process.json")
    is_asked_to_stop = (folder / "stop").exists()
    # A launch deletes status.json. So if both files name a process, status.json is of the same
    # one, or of a later one that was started by hand in the run's folder.
    launched, written_by = process_of(folder), status.process
    is_of_copied_launch = launched is None and launch.get("pid") == status.pid
    if is_of_copied_launch or is_of_other_folder(folder, status.folder_inode):
        written_by = None
    for process in (launched, written_by):
        if process and is_alive(process):
            state: State = "stopping" if is_asked_to_stop else status.state
            return RunState(state, process=process)
    process = launched or written_by
    if launched and written_by and launched.pid != written_by.pid:
        process = written_by
    if process is None and (ProcessId.from_json(launch) or status.process):
        return RunState("interrupted", COPIED)
    begun = max(created, number_in(launch, "asked") or 0)
    if process is None and abs(time.time() - begun) < SECONDS_TO_APPEAR:  # clocks can be set back
        return RunState("starting")
    if is_asked_to_stop:
        return RunState("stopped")  # it ended as asked, before it could write so
    return _state_after_silent_end(folder, process, status.step)


def _state_without_job(submission: Submission, status: Status) -> RunState:
    """Return the state of a run that is being sent to a cluster, or whose job nobody knows.

    Files of earlier attempts were removed, so status.json is of a program that was started since.
    """
    is_asked = is_asked_by_user(submission.folder)
    if submission.state.stage == "sending":
        return RunState("stopping" if is_asked else "queued")
    has_started = (submission.folder / "status.json").exists()
    if not has_started and not is_asked:
        return RunState("interrupted", f"{submission.silence} {LOST}")
    stage: Stage = "running" if has_started else "waiting"
    return _state_on_cluster(submission, ClusterState(stage, is_silent=True), status)


def _state_on_cluster(submission: Submission, cluster: ClusterState, status: Status) -> RunState:
    """Return the state of a run whose program runs on other machines.

    A program that stopped without being asked to, for a time limit or a more urgent job, may have
    been put back into the cluster's queue: only the cluster says whether it has ended.
    """
    is_asked_to_stop = (submission.folder / "stop").exists()
    has_ended = cluster.stage == "ended" or cluster.is_silent
    was_ended_from_outside = status.state == "stopped" or status.cause == "signal"
    if status.state in ("finished", "failed", "interrupted") and (
        has_ended or not was_ended_from_outside
    ):
        if cluster.cause and status.cause == "signal":  # the cluster knows why it was killed
            error = f"{status.error} {submission.sentence}: {cluster.meaning}."
            return RunState(status.state, error, cluster.cause)
        return RunState(status.state, status.error or "", status.cause or "")
    is_asked = is_asked_by_user(submission.folder)
    if status.state == "stopped" and (has_ended or is_asked):
        return RunState("stopped")
    if cluster.stage == "waiting" and not is_asked:
        return RunState("queued")
    if cluster.stage == "ended" and is_asked_to_stop:
        return RunState("stopped")
    if cluster.stage == "ended" and time.time() - cluster.ended > SECONDS_TO_BE_SEEN:
        return _state_without_last_words(submission, cluster)
    if cluster.is_silent and is_asked:
        if cluster.stage == "waiting":  # a job that starts later finds the request
            return RunState("stopped")
        asked = number_in(read_json(submission.folder / "stop"), "time") or time.time()
        if time.time() - asked > SECONDS_TO_STOP_UNSEEN:
            return RunState("interrupted", f"{submission.silence} {UNSEEN}")
    if is_asked_to_stop or was_ended_from_outside:
        return RunState("stopping")
    return RunState(status.state)


def is_asked_by_user(folder: Path) -> bool:
    """Return True if a user has asked a run on a cluster to stop.

    The signal of a cluster leaves an empty file, which the script removes when it starts again.
    """
    return bool(read_bytes(folder / "stop"))


def _state_without_last_words(submission: Submission, cluster: ClusterState) -> RunState:
    """Return what happened to a program on a cluster that did not write how it ended."""
    meaning = f": {cluster.meaning}" if cluster.meaning else ""
    error = f"{submission.sentence}{meaning}."
    if last_line := log_tail(submission.folder, 2000).rpartition("\n")[2]:
        error += f" Last line of its log: {last_line}"
    return RunState(cluster.ending or "failed", error, cluster.cause)


def process_of(folder: Path) -> ProcessId | None:
    """Return the process that was launched for a run, None if none was for this folder of it."""
    fields = read_json(folder / "process.json")
    inode = fields.get("folder_inode")
    if isinstance(inode, int) and is_of_other_folder(folder, inode):
        return None
    return ProcessId.from_json(fields)


def is_of_other_folder(folder: Path, inode: int | None) -> bool:
    """Return True if a file was written in the folder that this one is a copy of.

    Files of early versions do not say where they were written.
    """
    return inode is not None and inode != folder.stat().st_ino


def count_oom_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory since boot (Linux)."""
    try:
        counters = Path("/proc/vmstat").read_text(encoding="ascii").split()
        return int(counters[counters.index("oom_kill") + 1])
    except (OSError, ValueError):
        return None


def _state_after_silent_end(folder: Path, process: ProcessId | None, step: int) -> RunState:
    """Return what happened to a program that did not write how it ended.

    If its launcher still lived, it wrote the exit code to exit.json.
    """
    if process is None:
        return RunState("failed", "The training program was never started.")
    if not is_same_boot(process.boot_id, this_boot()):
        return RunState("interrupted", "The computer was restarted while this run was training.")
    where = f"after step {step:,}" if step else "before its first step"
    ending = read_json(folder / "exit.json")
    code = ending.get("code") if ProcessId.from_json(ending) == process else None
    if isinstance(code, int) and code < 0:
        how, cause = _signal_ending(-code)
        if ending.get("is_out_of_memory"):
            how, cause = OUT_OF_MEMORY
        return RunState("failed", f"The training program {how}, {where}.", cause)
    how = "without finishing" if code is None else f"with exit code {code}"
    last_line = log_tail(folder, 2000).rpartition("\n")[2] or "none"
    error = f"The training program ended {how}, {where}. Last line of its log: {last_line}"
    return RunState("failed", error)


def _signal_ending(number: int) -> tuple[str, str]:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return SIGNALS.get(name, (f"was ended by {name}", "signal"))
