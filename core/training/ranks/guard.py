"""Guard of a rank: a small process beside it where several machines train, and no leader watches.

It hears the heartbeat of its rank over a pipe, so that slow storage is no silence, and ends a rank
that hangs. Guards tell each other the cause, and the end of a machine: then every rank is ended.
Never imports torch.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..contract.files import write_json
from ..contract.status import ENDED
from .last_words import is_lost_contact, write_ending
from .links import Hub, Links, Spoke, Words
from .rank import HEARTBEATS, PARENT_VARIABLE, Rank, read_words, this_rank
from .silence import SECONDS_WITHOUT_BEAT, Silence
from .stuck import STUCK, find_stuck

BEAT, STANDS_STILL, GOODBYE, TOLD_TO_END = b".", b"s", b"!", b"t"
"""Signs: the rank lives; it lives and gets no further, as its heartbeat says; it has ended as it
should; torchrun has told it to end."""
PIPE = 0
SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_FOR_LAST_WORDS = 6.0
"""Time for a rank to end by itself, once another one is the cause."""
SECONDS_FOR_A_CAUSE = 8.0
"""Time for the guard of another rank to tell why this one was told to end."""


class Guard:
    """Watch over one rank."""

    def __init__(self, folder: Path, rank: Rank, pid: int):
        self.folder, self.rank, self.pid = folder, rank, pid
        self._silence = Silence(pid)
        # Ray has workers of its own in place of torchrun.
        is_of_torchrun = PARENT_VARIABLE not in os.environ
        self._launcher = psutil.Process(pid).parent() if is_of_torchrun else None
        self._links: Links = (Hub if rank.is_first else Spoke)(folder, rank)
        self._links.watch(PIPE)
        self._last_sign = BEAT
        self._is_pipe_open = True
        self._cause: Words | None = None
        """Why all end: a failure of the rank `index`."""
        self._known_since = 0.0

    def watch(self) -> None:
        """Return once the rank has ended, and the others know if it was the cause."""
        while not self._has_ended():
            self._look()
            if self._silence.is_too_long:
                said = f"has not answered for {SECONDS_WITHOUT_BEAT:.0f} s, so all were ended"
                self._name_cause(self.rank.index, self.rank.name, said)
                self._kill()
            for index, silence in self._links.silences.items():
                if silence.is_too_long:
                    said = f"cannot be reached for {SECONDS_WITHOUT_BEAT:.0f} s: its machine "
                    said += "hangs or is gone, so all were ended"
                    self._name_cause(index, self._links.names[index], said, is_machine=True)
            if self.rank.is_first and self._links.all_stand_still:
                self._name_stuck()
            if self._cause and time.monotonic() - self._known_since > SECONDS_FOR_LAST_WORDS:
                self._kill()
        self._find_cause()
        self._write()
        self._links.close()
        if self._cause and self._cause.get("is_machine"):
            self._end_launcher()

    def _look(self) -> None:
        """Wait for a moment, and take note of what has come."""
        for failure in self._links.receive(SECONDS_BETWEEN_LOOKS):
            self._learn(failure)
        self._silence.grow()
        while self._is_pipe_open and select.select([PIPE], [], [], 0)[0]:
            signs = os.read(PIPE, 4096)
            if signs:
                self._take(signs[-1:])
                self._silence.end()
            else:
                self._links.forget(PIPE)
                self._is_pipe_open = False

    def _take(self, sign: bytes) -> None:
        """Take the last sign of the rank."""
        said = None
        if sign == STANDS_STILL:
            said = read_words(self.folder / HEARTBEATS / f"{self.rank.index}.json").get(
                "standstill"
            )
        self._links.hear_standstill(self.rank.index, said)
        self._last_sign = BEAT if sign == STANDS_STILL else sign

    def _has_ended(self) -> bool:
        # A child of the rank may keep the pipe open.
        return not self._is_pipe_open or os.getppid() != self.pid or self._last_sign == GOODBYE

    def _find_cause(self) -> None:
        """Tell the others the cause if it is this rank, or wait until they tell it."""
        own = read_words(self.folder / HEARTBEATS / f"{self.rank.index}.failure.json")
        status = read_words(self.folder / "status.json") if self.rank.is_first else {}
        if self._last_sign == GOODBYE and status.get("state") == "failed":
            own = {"sentence": status.get("error"), "cause": status.get("cause")}
        if own and not is_lost_contact(str(own.get("sentence"))):
            self._tell({**own, "index": self.rank.index})
        elif self._last_sign == BEAT and not own:
            said = "was killed or has crashed, so the others were ended too"
            self._name_cause(self.rank.index, self.rank.name, said)
        begin = time.monotonic()
        while not self._is_known(status) and time.monotonic() - begin < SECONDS_FOR_A_CAUSE:
            for failure in self._links.receive(SECONDS_BETWEEN_LOOKS):
                self._learn(failure)

    def _is_known(self, status: Mapping[str, object]) -> bool:
        """Return True if nothing is left to hear: the first rank was not told why it should end."""
        is_well = self._last_sign == GOODBYE or not self.rank.is_first
        return self._cause is not None or is_well or status.get("state") in ENDED

    def _name_stuck(self) -> None:
        """Let the rank be the cause that keeps all from getting on."""
        names = {**self._links.names, self.rank.index: self.rank.name}
        found = find_stuck(self._links.standing, names)
        words = {"index": found.ranks[0], "cause": STUCK, "sentence": found.sentence}
        self._tell({**words, "time": time.time()})

    def _name_cause(self, index: int, name: str, what: str, *, is_machine: bool = False) -> None:
        """Let a rank that could not say so itself be the cause, or its whole machine."""
        if self._cause is None:
            words = {"index": index, "cause": "signal", "sentence": f"{name}, {what}."}
            self._tell({**words, "is_machine": is_machine, "time": time.time()})

    def _tell(self, failure: Words) -> None:
        """Take a cause that this guard has found, and tell the others."""
        if self._cause is None:
            self._learn(failure)
            self._links.tell({"failure": failure})

    def _learn(self, failure: Words) -> None:
        """Take the first cause; keep it where the ranks of this machine look for it."""
        if self._cause is not None or not isinstance(failure.get("index"), int):
            return
        self._cause, self._known_since = failure, time.monotonic()
        path = self.folder / HEARTBEATS / f"{failure['index']}.failure.json"
        if not path.exists():
            with suppress(OSError):
                write_json(path, dict(failure))

    def _write(self) -> None:
        """Note in the run folder that the rank has ended; and why, if no rank could."""
        place = self.folder / HEARTBEATS
        heartbeat = place / f"{self.rank.index}.json"
        words: dict[str, Any] = {**read_words(heartbeat), "has_ended": True}
        with suppress(OSError):
            write_json(heartbeat, words)
        if self._cause is None or not (self.rank.is_first or self._cause["index"] == 0):
            return
        if read_words(self.folder / "status.json").get("state") not in ENDED:
            names = ("cause", "needed_bytes", "free_bytes")
            changes = {name: self._cause.get(name) for name in names}
            write_ending(
                self.folder, {"state": "failed", "error": self._cause["sentence"], **changes}
            )

    def _end_launcher(self) -> None:
        """End torchrun if it waits for a machine that is gone, as it does for minutes."""
        if self._launcher is None:
            return
        try:
            self._launcher.wait(SECONDS_FOR_LAST_WORDS)
        except psutil.TimeoutExpired:
            with suppress(psutil.Error):
                self._launcher.kill()

    def _kill(self) -> None:
        if os.getppid() == self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def command() -> list[str]:
    """Return the command that starts a guard of this process, in its run folder."""
    return [sys.executable, "-m", "training.ranks.guard"]


def main() -> int:
    """Watch over the process that has started this one, in its run folder."""
    pid = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its rank
    Guard(Path.cwd(), this_rank(), pid).watch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
