"""Leader of the ranks: starts them with torchrun, passes a stop request on, and says how they
ended. Never imports torch.

A rank that was killed or hangs ends the run: the others would wait for it for ever.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from ..contract.status import ENDED
from . import torchrun
from .last_words import is_lost_contact, write_ending
from .rank import HEARTBEATS, LEADER_VARIABLE, read_words
from .silence import SECONDS_WITHOUT_BEAT, Silence
from .stuck import STUCK, find_stuck

EXIT_CODES: Mapping[str, int] = {"finished": 0, "failed": 1, "stopped": 130, "interrupted": 1}
UNUSABLE_JOB = 2
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_FOR_LAST_WORDS = 3.0
"""Time for the ranks to write why they end, once one of them has ended."""
SECONDS_FOR_TORCHRUN = 15.0
"""Time for torchrun to end and to say which rank was the first, once all have ended."""
LAST_WORDS_BYTES, MOST_LAST_WORDS = 2000, 2


@dataclass
class Watch:
    """Observations of one rank."""

    heartbeat: Path
    pid: int = 0
    has_ended: bool = False
    """True once the rank has said so itself."""
    changed_ns: int = -1
    silence: Silence = field(default_factory=Silence)
    standstill: Mapping[str, Any] | None = None
    """What the rank says of itself while it stands still."""

    def look(self) -> None:
        """Read the heartbeat if it is new. To be called several times a second."""
        self.silence.grow()
        with suppress(OSError):
            changed_ns = self.heartbeat.stat().st_mtime_ns
            if changed_ns != self.changed_ns:
                words = read_words(self.heartbeat)
                self.pid = self.silence.pid = int(str(words.get("pid", 0)))
                self.has_ended = bool(words.get("has_ended"))
                said = words.get("standstill")
                self.standstill = said if isinstance(said, dict) else None
                self.changed_ns = changed_ns
                self.silence.end()

    @property
    def is_gone(self) -> bool:
        """True if its process has ended without saying so."""
        return bool(self.pid) and not self.has_ended and not _is_running(self.pid)

    @property
    def is_alive(self) -> bool:
        """True if its process runs."""
        return bool(self.pid) and _is_running(self.pid)

    @property
    def is_silent(self) -> bool:
        """True if it lives and does not beat."""
        return bool(self.pid) and not self.has_ended and self.silence.is_too_long


@dataclass(frozen=True)
class Ending:
    """Why the leader ends all ranks, where none has left a reason."""

    sentence: str
    cause: str = "signal"
    ranks: Sequence[int] = ()
    """Ranks whose logs show where they are stuck."""


def lead(folder: Path, arguments: Sequence[str], num_ranks: int) -> int:
    """Train with several ranks in a run folder. Return the exit code of the run."""
    place = folder / HEARTBEATS
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (folder / "status.json").unlink(missing_ok=True)  # of an earlier attempt
    watches = [Watch(place / f"{index}.json") for index in range(num_ranks)]
    with _signals_become_a_stop_request(folder / "stop"):
        program = _start(folder, arguments, num_ranks)
        try:
            ending = watch_ranks(program, watches)
        finally:
            _end(program)
    status = read_words(folder / "status.json")
    if status.get("state") not in ENDED:
        if (folder / "stop").exists() and not ending:
            status = write_ending(folder, {"state": "stopped"})
        else:
            status = write_ending(folder, {"state": "failed", **_failure(place, num_ranks, ending)})
    if status.get("cause") == "bad_job" and not status.get("step"):
        return UNUSABLE_JOB
    return EXIT_CODES[str(status["state"])]


def _start(folder: Path, arguments: Sequence[str], num_ranks: int) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        LEADER_VARIABLE: str(os.getpid()),
        # torchrun would set it to 1 with a warning.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    return subprocess.Popen(
        torchrun.command(arguments, num_ranks),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def watch_ranks(program: "subprocess.Popen[bytes]", watches: Sequence[Watch]) -> Ending | None:
    """Wait until all ranks have ended, or must be. Return what one died of without a word."""
    ending = None
    while program.poll() is None:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for watch in watches:
            watch.look()
        ending = silent_ending(watches) or stuck_ending(watches)
        if ending:
            _wait_for_last_words(program, watches)
            break
    for watch in watches:
        watch.look()
    # Only then is it certain which was the first; one that hung may answer again, too late.
    return silent_ending(watches) or ending


def _wait_for_last_words(program: "subprocess.Popen[bytes]", watches: Sequence[Watch]) -> None:
    """Wait until torchrun has ended, or for a short time while ranks are alive."""
    begin = time.monotonic()
    limit = SECONDS_FOR_LAST_WORDS
    while program.poll() is None and time.monotonic() - begin < limit:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if not any(watch.is_alive for watch in watches):
            limit = SECONDS_FOR_TORCHRUN


def silent_ending(watches: Sequence[Watch]) -> Ending | None:
    """Return what to say about the first rank that was killed or hangs; None if none."""
    first = torchrun.first_failure(watches[0].heartbeat.parent.parent)
    for index, watch in sorted(enumerate(watches), key=lambda pair: pair[0] != first):
        who = f"{_name(index, len(watches))},"
        if watch.is_gone and not watch.heartbeat.with_suffix(".failure.json").exists():
            return Ending(f"{who} was killed or has crashed, so the others were ended too.")
        if watch.is_silent:
            seconds = SECONDS_WITHOUT_BEAT
            return Ending(f"{who} has not answered for {seconds:.0f} s, so all were ended.")
    return None


def stuck_ending(watches: Sequence[Watch]) -> Ending | None:
    """Return what to say if no rank gets on any more; None while one does."""
    left = {index: watch for index, watch in enumerate(watches) if not watch.has_ended}
    standing = {index: watch.standstill for index, watch in left.items() if watch.standstill}
    if not standing or len(standing) < len(left):
        return None
    found = find_stuck(standing, {index: _name(index, len(watches)) for index in standing})
    return Ending(found.sentence, STUCK, found.ranks)


def _name(index: int, num_ranks: int) -> str:
    return f"Process {index + 1} of {num_ranks}, on device {index}"


def _failure(place: Path, num_ranks: int, ending: Ending | None) -> dict[str, Any]:
    """Return error and cause of a run whose ranks did not end well."""
    written = [(read_words(place / f"{index}.failure.json"), index) for index in range(num_ranks)]
    failures = [(words, index) for words, index in written if words]
    failures.sort(key=lambda pair: float(str(pair[0].get("time", 0))))
    own = [pair for pair in failures if not is_lost_contact(str(pair[0].get("sentence", "")))]
    if own:
        words, index = own[0]
        _print_last_words(place, index)
        names = ("cause", "needed_bytes", "free_bytes")
        who = f"{_name(index, num_ranks)}: "
        sentence = str(words.get("sentence", ""))
        return {"error": who + sentence, **{name: words.get(name) for name in names}}
    if ending:
        for index in ending.ranks[:MOST_LAST_WORDS]:
            _print_last_words(place, index)
        return {"error": ending.sentence, "cause": ending.cause}
    if failures:
        words, index = failures[0]
        return {"error": str(words.get("sentence", "")), "cause": words.get("cause")}
    return {"error": "The processes ended without a word; see the log.", "cause": None}


def _print_last_words(place: Path, index: int) -> None:
    """Print the end of the log of a rank that has one of its own."""
    with suppress(OSError):
        words = (place / f"{index}.log").read_bytes()[-LAST_WORDS_BYTES:]
        print(words.decode("utf-8", errors="replace"), flush=True)


def _end(program: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of torchrun and the ranks."""
    with suppress(psutil.Error):
        process = psutil.Process(program.pid)
        for each in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                each.kill()
    program.wait()


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def _signals_become_a_stop_request(file: Path) -> Iterator[None]:
    """Let SIGTERM and SIGINT create the file at which the ranks stop, with a checkpoint."""

    def request(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            file.touch()

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, request) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
