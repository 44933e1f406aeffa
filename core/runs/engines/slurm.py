"""Slurm: sbatch, squeue, sacct, scancel and sinfo, found on the PATH. Polls; keeps no daemon.

Tried with Slurm 22.05. States: https://slurm.schedmd.com/squeue.html
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from core.device.child import allowed_environment
from core.job import Problem, SpecError
from core.runs.engines import script
from core.runs.engines.placement import NAME, TITLES, Placement
from core.runs.engines.record import ClusterSilent, Engine, Found
from core.runs.engines.slurm_answers import REASONS, job_id_in, refusal
from core.runs.engines.submission import ClusterState, Submission

SECONDS_TO_ANSWER = 20
SECONDS_TO_SUBMIT = 60
SECONDS_FOR_A_NODE = 5
"""Time for a free node to be given to a short command; without one it is not run at all."""
SECONDS_ON_A_NODE = 15
NAME_OF_NODE = "/proc/sys/kernel/hostname"
"""File that every node has."""
SECONDS_BEFORE_LIMIT = 300
"""Time before its limit at which a job is asked for a checkpoint; less in a short job."""
OWN_VARIABLES = re.compile(r"SLURM_CONF|SLURM_CONF_SERVER|SLURM_CLUSTERS|SBATCH_\w+")
"""Variables by which the user of a site says how its commands work."""
TASK = re.compile(r"\d+_\d+")
"""Id of one task of an array."""
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
ENDED: Mapping[str, str] = {
    "COMPLETED": "",
    "CANCELLED": "it was cancelled",
    "TIMEOUT": "its time limit was over before a checkpoint was saved: ask for more time",
    "DEADLINE": "its deadline was over",
    "PREEMPTED": "another job took its place: resume it",
    "NODE_FAIL": "its node failed: resume it",
    "BOOT_FAIL": "its node did not start: resume it",
    "OUT_OF_MEMORY": "it took more main memory than it was given: ask for more in submit.sh",
    "FAILED": "the program ended without a word",
    "REVOKED": "the cluster took it back",
}
"""State of a job that has ended -> what that means for a run whose program said nothing."""
FAILURES = ("FAILED", "OUT_OF_MEMORY", "COMPLETED")
"""States after which a run has failed; after the others it was interrupted."""
NO_OUTPUT_FILE = 53
"""Signal that Slurm names if the node could not open log.txt: it does not see the folder."""


def look(_placement: Placement) -> Found:
    """Return the partitions, if sbatch is here."""
    if not shutil.which("sbatch"):
        fix = "log in to a machine of the cluster, where sbatch is on the PATH"
        return Found("this machine has no sbatch", fix)
    try:
        names = (name for name, _gres in _partitions() if NAME.fullmatch(name))
        return Found(partitions=tuple(dict.fromkeys(names)))
    except ClusterSilent as silence:
        return Found(f"Slurm does not answer: {silence}", "try again later")


def submit(folder: Path, placement: Placement, num_devices: int) -> str:
    """Write submit.sh, unless one with these settings is there, and hand it to sbatch.

    Return the id of the job. Raises SpecError, OSError.
    """
    if not (folder / script.NAME).exists():
        write_script(folder, placement, num_devices)
    return _submitted(script.NAME, folder, folder.name, placement)


def submit_array(
    folders: Sequence[Path], placement: Placement, num_devices: int, path: Path
) -> Sequence[str]:
    """Hand run folders to sbatch as one job with a task for each. Return the ids of the tasks.

    Each folder gets its own submit.sh, by which it is resumed alone. Raises SpecError, OSError.
    """
    for folder in folders:
        if not (folder / script.NAME).exists():
            write_script(folder, placement, num_devices)
    options = tuple(_options(path.stem, placement, num_devices, log="/dev/null"))
    script.write_array(path, (*options, f"--array=0-{len(folders) - 1}"), folders)
    job_id = _submitted(path.name, path.parent, folders[0].name, placement)
    return [f"{job_id}_{task}" for task in range(len(folders))]


def _submitted(name: str, folder: Path, run_id: str, placement: Placement) -> str:
    """Return the id of a job that was made of a script in a folder. Raises SpecError."""
    again = f"python app.py runs resume {run_id} {placement.flags}"
    words = ["sbatch", "--parsable", name]
    done = _run(words, folder, SECONDS_TO_SUBMIT, f"try again: {again}")
    if done.returncode:
        raise SpecError(refusal(done.stderr or done.stdout, again, placement))
    return job_id_in(done.stdout, done.stderr, again)


def write_script(folder: Path, placement: Placement, num_devices: int) -> None:
    """Write submit.sh for sbatch. Raises OSError."""
    body = script.one_node()
    if placement.nodes > 1:
        body = script.several_nodes(max(1, num_devices))
    options = tuple(_options(folder.name, placement, num_devices))
    script.write_script(folder, options, body)


def ask(submissions: Sequence[Submission]) -> Mapping[str, ClusterState]:
    """Return the states of jobs by run, from squeue or else sacct. Raises ClusterSilent."""
    wanted = [each.job_id for each in submissions]
    found = dict(_read(_squeue(wanted), is_wait_status=True))
    forgotten = [job_id for job_id in wanted if job_id not in found]
    if forgotten:
        found |= dict(_read(_sacct(forgotten), is_wait_status=False))
    said = "the cluster no longer knows it"
    gone = ClusterState("ended", "gone", "", said, "interrupted", ended=time.time())
    return {each.folder.name: found.get(each.job_id, gone) for each in submissions}


def blind_nodes(placement: Placement, file: Path) -> Sequence[str]:
    """Return the nodes that do not see a file, if as many as a run needs are free now."""
    options = {
        "immediate": SECONDS_FOR_A_NODE,
        "nodes": placement.nodes,
        "ntasks-per-node": 1,
        "time": 1,  # minutes
        "job-name": "tailor-probe",
        "chdir": "/",
        "partition": placement.partition,
        "account": placement.account,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value]
    # timeout ends srun with SIGTERM, at which srun takes its job back.
    limit = ["timeout", "--kill-after=2", str(SECONDS_ON_A_NODE)]
    words = [*limit, "srun", "--quiet", "--label", *given, "cat", str(file), NAME_OF_NODE]
    try:
        done = _run(words, None, SECONDS_TO_ANSWER)
    except SpecError:
        return ()
    printed: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        task, _colon, text = line.partition(":")
        printed.setdefault(task, []).append(text.strip())
    content = file.read_text().strip()
    return [f"the node {lines[-1]}" for lines in printed.values() if content not in lines]


def stop(submission: Submission) -> None:
    """Cancel a waiting job; wake the program of a running one. Raises ClusterSilent."""
    if TASK.fullmatch(submission.job_id):
        # With --state, Slurm 22.05 would cancel all tasks of the array that wait.
        if any(row[1] == "PENDING" for row in _squeue([submission.job_id])):
            _command(["scancel", submission.job_id])
    else:
        _command(["scancel", "--state=PENDING", submission.job_id])
    # The program also finds the file `stop`; a signal only wakes it sooner.
    _command(["scancel", "--signal=TERM", "--batch", "--state=RUNNING", submission.job_id])


def cancel(submission: Submission) -> None:
    """Cancel a job: SIGTERM, and SIGKILL after the site's KillWait. Raises ClusterSilent."""
    _command(["scancel", submission.job_id])


SLURM = Engine(
    id="slurm",
    title=TITLES["slurm"],
    fields=("nodes", "partition", "account", "time", "gres"),
    look=look,
    submit=submit,
    ask=ask,
    stop=stop,
    cancel=cancel,
    blind_nodes=blind_nodes,
    submit_array=submit_array,
)


def _options(
    name: str, placement: Placement, num_devices: int, log: str = "log.txt"
) -> Iterator[str]:
    """Yield the options of sbatch. Each text was checked by Placement."""
    yield f"--job-name=tailor-{name}"
    yield f"--output={log}"
    yield "--open-mode=append"
    yield f"--nodes={placement.nodes}"
    yield "--ntasks-per-node=1"
    yield "--requeue"
    yield f"--signal=B:TERM@{_seconds_before_limit(placement.time)}"
    gres = placement.gres or _usual_gres(placement.partition, num_devices)
    chosen = {
        "partition": placement.partition,
        "account": placement.account,
        "time": placement.time,
        "gres": gres,
    }
    for name, value in chosen.items():
        if value:
            yield f"--{name}={value}"


def _seconds_before_limit(limit: str) -> int:
    """Return when a job is asked for a checkpoint: at the latest after three quarters of it."""
    seconds = seconds_of(limit)
    if seconds is None:
        return SECONDS_BEFORE_LIMIT
    return max(1, min(SECONDS_BEFORE_LIMIT, seconds // 4))


def seconds_of(limit: str) -> int | None:
    """Return the seconds of a limit as sbatch takes it; None without one."""
    if not limit:
        return None
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _usual_gres(partition: str, num_devices: int) -> str:
    """Return the GPUs to ask for where the user names none and the partition has some."""
    try:
        partitions = _partitions()
    except ClusterSilent:
        return ""
    wanted = partition.split(",")[0] or next((name for name, _gres in partitions), "")
    has_gpus = any(name == wanted and "gpu" in gres for name, gres in partitions)
    return f"gpu:{max(1, num_devices)}" if has_gpus else ""


def _partitions() -> tuple[tuple[str, str], ...]:
    """Return (name, devices) of the partitions that accept jobs, the usual one first."""
    rows = [line.split("|") for line in _ask(["sinfo", "--noheader", "--format=%P|%a|%G"])]
    names = [row for row in rows if len(row) == 3 and row[1] == "up"]
    names.sort(key=lambda row: not row[0].endswith("*"))
    return tuple(dict.fromkeys((name.rstrip("*"), gres) for name, _up, gres in names))


def _squeue(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield id, state, reason and exit status of the jobs that Slurm remembers."""
    columns = "JobArrayID:|,State:|,Reason:|,exit_code:|"  # 7, or 7_0 for a task of an array
    command = ["squeue", "--array", "--noheader", "--states=all", f"--Format={columns}"]
    for line in _ask([*command, f"--jobs={','.join(job_ids)}"], may_fail="Invalid job id"):
        yield line.split("|")


def _sacct(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the same of older jobs, where the site keeps accounts."""
    columns = "JobID,State,Reason,ExitCode"
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--format={columns}"]
    if shutil.which("sacct"):
        for line in _ask([*command, f"--jobs={','.join(job_ids)}"], may_fail="accounting storage"):
            yield line.split("|")


def _read(
    rows: Iterator[Sequence[str]], *, is_wait_status: bool
) -> Iterator[tuple[str, ClusterState]]:
    """Yield (id, state) of rows of squeue, whose exit status is that of wait, or of sacct."""
    for row in rows:
        if len(row) < 4:
            continue
        job_id, word, reason = (text.strip() for text in row[:3])
        word = word.partition(" ")[0]  # CANCELLED by 1000
        if is_wait_status:
            status = int(row[3]) if row[3].strip().isdecimal() else 0
            code, signal = status >> 8, status & 0x7F
        else:
            code, signal = _codes(row[3])
        yield job_id, _state(word, "" if reason == "None" else reason, code, signal)


def _codes(text: str) -> tuple[int, int]:
    """Return exit code and signal of a text such as 72:0."""
    parts = [*text.strip().split(":"), "0"]
    code, signal = (int(part) if part.isdecimal() else 0 for part in parts[:2])
    return code, signal


def _state(word: str, reason: str, code: int, signal: int) -> ClusterState:
    """Return what a word of Slurm means for a run."""
    if word in WAITING:
        return ClusterState("waiting", word, reason, REASONS.get(reason, ""))
    if word not in ENDED:
        return ClusterState("running", word, reason)
    if code == script.FOLDER_NOT_SEEN or signal == NO_OUTPUT_FILE:
        meaning = f"{script.NOT_SEEN}: {script.NOT_SEEN_FIX}"
        return ClusterState("ended", word, reason, meaning, "failed", ended=time.time())
    ended = ClusterState("ended", word, reason, ENDED[word], "interrupted", ended=time.time())
    if word in FAILURES:
        cause = "out_of_memory" if word == "OUT_OF_MEMORY" else ""
        return replace(ended, ending="failed", cause=cause)
    return ended


def _command(words: Sequence[str]) -> None:
    """Run a command whose failure says that the job has ended. Raises ClusterSilent."""
    _ask(words, may_fail="nvalid job id")


def _ask(words: Sequence[str], may_fail: str = "") -> Sequence[str]:
    """Return the lines that a command prints; none if it fails in an expected way.

    Raises ClusterSilent.
    """
    try:
        done = _run(words, None, SECONDS_TO_ANSWER)
    except SpecError as error:
        raise ClusterSilent(error.reason) from error
    if done.returncode and not (may_fail and may_fail in done.stderr):
        last = done.stderr.strip().rpartition("\n")[2]
        raise ClusterSilent(last[:200] or f"{words[0]} failed")
    return done.stdout.splitlines()


def _run(
    words: Sequence[str],
    folder: Path | None,
    seconds: float,
    fix: str = "try again, or ask the cluster's people",
) -> "subprocess.CompletedProcess[str]":
    """Run a command of Slurm. Raises SpecError if it cannot be run or does not answer in time."""
    settings = {name: value for name, value in os.environ.items() if OWN_VARIABLES.fullmatch(name)}
    environment = allowed_environment("basic", "hub", "training") | settings
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # of this machine; Slurm sets that of the node
    try:
        return subprocess.run(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        problem = f"{words[0]} has not answered for {seconds:.0f} s"
        raise SpecError(Problem("on", problem, fix)) from None
    except OSError as error:
        problem = f"{words[0]} cannot be run: {error.strerror}"
        raise SpecError(Problem("on", problem, "ask the cluster's people")) from None
