"""Rank of this process among the processes of one training. Never imports torch.

torchrun says in the environment which rank a process is. Only rank 0 writes to the run folder;
the others print into ranks/<rank>.log, and each keeps its heartbeat in ranks/<rank>.json.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ..contract.failures import Failure
from ..contract.files import write_json
from .standstill import Standstill

LEADER_VARIABLE = "TAILOR_LEADER"
"""Environment variable with the pid of the leader."""
PARENT_VARIABLE = "TAILOR_PARENT"
"""Environment variable with the pid of another process with which a rank ends."""
HEARTBEATS = "ranks"
"""Folder of the heartbeats, failures and logs of the ranks, in the run folder."""
SECONDS_BETWEEN_BEATS = 1.0
EXIT_WITHOUT_PARENT = 143
LAUNCHER = os.getppid()
"""Pid of the process that has started this one, such as torchrun."""
LAUNCHER_GONE = Failure("signal", "The program that has started it, torchrun, was killed.")


@dataclass(frozen=True)
class Rank:
    """Place of a process among those that train together."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    """Place among the processes of this machine, and so the number of its device."""
    leader: int = 0
    """Pid of the leader; 0 if torchrun was started by hand or there is one rank only."""
    parent: int = 0
    """Pid of a process with which this one ends: the leader, or a worker of Ray; 0 for none."""

    @property
    def is_first(self) -> bool:
        """True for the rank that writes to the run folder."""
        return self.index == 0

    @property
    def is_alone(self) -> bool:
        return self.count == 1

    @property
    def name(self) -> str:
        """Process, device and machine, as users know them."""
        where = f"on device {self.local_index} of {name_of_machine()}"
        return f"Process {self.index + 1} of {self.count}, {where}"

    @contextmanager
    def at_work(self, folder: Path, standstill: Standstill) -> Iterator[None]:
        """Keep a heartbeat, end with the leader, and print to an own log except in rank 0.

        The heartbeat says of a rank that stands still where it does.
        """
        if self.is_alone:
            yield
            return
        place = folder / HEARTBEATS
        place.mkdir(exist_ok=True)
        if not self.leader:  # of an earlier attempt
            (place / f"{self.index}.failure.json").unlink(missing_ok=True)
        if not self.is_first:
            _print_to(place / f"{self.index}.log")
        is_over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(place, standstill, is_over), daemon=True)
        beat.start()
        try:
            yield
        finally:
            is_over.set()
            beat.join()

    def _beat(self, place: Path, standstill: Standstill, is_over: threading.Event) -> None:
        heartbeat = place / f"{self.index}.json"
        words = {"pid": os.getpid(), "name": self.name, "has_ended": False}
        said = standstill.words
        with suppress(OSError):
            write_json(heartbeat, words)
        while not is_over.wait(SECONDS_BETWEEN_BEATS):
            standstill.look()
            with suppress(OSError):
                if standstill.words is not said:
                    write_json(heartbeat, {**words, "standstill": standstill.words})
                    said = standstill.words
                os.utime(heartbeat)  # takes no room: a rank beats on a full disk too
            if os.getppid() != LAUNCHER:
                report_failure(place.parent, self, LAUNCHER_GONE)
                os._exit(EXIT_WITHOUT_PARENT)
            if self.parent and not psutil.pid_exists(self.parent):
                os._exit(EXIT_WITHOUT_PARENT)
        with suppress(OSError):
            write_json(heartbeat, {**words, "has_ended": True})


def this_rank() -> Rank:
    """Return the rank of this process, by the environment that torchrun gives it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Rank()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    index, count, local_index = (int(os.environ[name]) for name in names)
    leader = int(os.environ.get(LEADER_VARIABLE, "0"))
    parent = int(os.environ.get(PARENT_VARIABLE, "0")) or leader
    return Rank(index, count, local_index, leader, parent)


def name_of_machine() -> str:
    """Return the name of this machine, or of the node that Slurm takes it for."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def devices_asked(fields: Mapping[str, object]) -> int:
    """Return how many devices a job file asks for; 0 means every visible one."""
    asked = fields.get("num_devices", 1)
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
        return 1  # Job.from_json says what is wrong
    if asked == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        return max(1, len([name for name in visible.split(",") if name.strip()]))
    return asked


def report_failure(folder: Path, rank: Rank, failure: Failure) -> None:
    """Leave the reason why this rank ended: to the leader, or to the other ranks and guards.

    If the torchrun of this rank was killed, that is the reason. The other torchruns may have met
    there: then they end their ranks, and this one fails because it loses contact.
    """
    if os.getppid() != LAUNCHER:
        failure = LAUNCHER_GONE
    sentence = failure.sentence if rank.leader else f"{rank.name}: {failure.sentence}"
    with suppress(OSError):
        words = {**asdict(failure), "sentence": sentence, "time": time.time()}
        write_json(folder / HEARTBEATS / f"{rank.index}.failure.json", words)


def read_words(path: Path) -> dict[str, object]:
    """Return the JSON object in a file that a rank wrote, or {} if there is none."""
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return words if isinstance(words, dict) else {}


def _print_to(log: Path) -> None:
    """Send everything that this process prints, its libraries included, to a file."""
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
