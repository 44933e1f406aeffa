"""torchrun by hand: the user types one line on each of several machines, which share the folder.

Tailor starts nothing there. It sees that the programs run by the heartbeat of the first.
"""

import shlex
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.job import Problem, SpecError
from core.runs.engines import script
from core.runs.engines.placement import TITLES, Placement, host_and_port
from core.runs.engines.record import Engine, Found
from core.runs.engines.submission import ClusterState, Submission
from core.runs.files import read_json

PORT = 29500
"""Port at which the machines meet, as torchrun has it."""
HEARTBEATS = "ranks"
"""Folder in which the program on each machine keeps a file that it touches every second."""
SECONDS_WITHOUT_BEAT = 120
"""A program that is silent for so long is gone. The clocks of two machines may differ a little."""


def look(placement: Placement) -> Found:
    """Return what is missing for several machines."""
    if placement.nodes < 2:
        return Found("one machine needs no lines by hand", "give --nodes 2 or more")
    try:
        host_and_port(_first_machine(placement), PORT)
    except SpecError as error:
        return Found(error.problems[0].problem, error.problems[0].fix)
    return Found()


def submit(folder: Path, placement: Placement, _num_devices: int) -> str:
    """Prepare a run folder for programs that the user starts, so there is no id of a job.

    Raises SpecError.
    """
    host_and_port(_first_machine(placement), PORT)
    if placement.nodes < 2:
        raise SpecError(Problem("nodes", "one machine needs no lines by hand", "give 2 or more"))
    shutil.rmtree(folder / HEARTBEATS, ignore_errors=True)
    return ""


def instructions(folder: Path, placement: Placement, num_devices: int) -> str:
    """Return the line that starts the programs of one machine, the same on each."""
    host, port = host_and_port(_first_machine(placement), PORT)
    options = [
        f"--nnodes={placement.nodes}",
        f"--nproc-per-node={max(1, num_devices)}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={folder.name}",
        f"--rdzv-endpoint={host}:{port}",
    ]
    line = shlex.join([*script.torchrun(), *options, *script.TRAIN])
    return (
        f"Type this on {host} and on {placement.nodes - 1} more, all of which see the folder:\n"
        f"cd {shlex.quote(str(folder))} && {line}"
    )


def ask(submissions: Sequence[Submission]) -> Mapping[str, ClusterState]:
    """Return the state of programs by hand, by the last heartbeat of the first one."""
    return {each.folder.name: _state(each.folder) for each in submissions}


def leave_to_the_file(_submission: Submission) -> None:
    """Do nothing: the programs look for the file `stop` after each step."""


BY_HAND = Engine(
    id="torchrun",
    title=TITLES["torchrun"],
    fields=("nodes", "address"),
    look=look,
    submit=submit,
    ask=ask,
    stop=leave_to_the_file,
    cancel=leave_to_the_file,
    instructions=instructions,
)


def _first_machine(placement: Placement) -> str:
    return placement.address or socket.gethostname()


def _state(folder: Path) -> ClusterState:
    heartbeat = folder / HEARTBEATS / "0.json"
    try:
        silence = time.time() - heartbeat.stat().st_mtime
    except OSError:
        if (folder / "stop").exists():
            return ClusterState("ended", "not started", ended=time.time())
        return ClusterState("waiting", "not started", "", "type the line on each machine")
    if read_json(heartbeat).get("has_ended"):
        return ClusterState("ended", "ended", ending="failed", ended=time.time())
    if silence > SECONDS_WITHOUT_BEAT:
        said = f"its programs have not answered for {silence:.0f} s"
        return ClusterState("ended", "silent", "", said, "interrupted", ended=time.time())
    return ClusterState("running", "running")
