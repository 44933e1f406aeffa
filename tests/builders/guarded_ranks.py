"""Ranks without torch: small programs that beat for a guard, as if torchrun had started them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from core.training.ranks import HEARTBEATS
from core.training.ranks.rank import read_words
from core.training.ranks.silence import SECONDS_WITHOUT_BEAT
from tests.builders.faulty_ranks import shorten_limits
from tests.builders.paths import ROOT
from tests.builders.ranks import wait_until

SECONDS_OF_SILENCE = 4.0
"""Silence after which a rank hangs here."""
PROGRAM = """
import sys
import threading
import time
from pathlib import Path
from training.contract.failures import Failure
from training.ranks import Marks, Standstill, guarded, report_failure, this_rank
folder, rank, marks = Path.cwd(), this_rank(), Marks()
standstill = Standstill(marks)
with rank.at_work(folder, standstill), guarded(folder, rank, standstill):
    marks.begin("train", "forward")
    while not (folder / f"end-{rank.index}").exists():
        if (folder / f"backward-{rank.index}").exists():
            marks.begin("train", "backward")
        if (folder / f"stuck-{rank.index}").exists():
            threading.Event().wait()
        time.sleep(0.05)
        marks.add()
    if words := (folder / f"end-{rank.index}").read_text():
        report_failure(folder, rank, Failure("unknown", words))
        sys.exit(1)
"""


class GuardedRanks:
    """Two ranks on two machines, which both are this one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.programs = [self._start(index) for index in range(2)]
        for index in range(2):
            wait_until(lambda index=index: bool(self._guards_of(index)))
        wait_until(lambda: (folder / HEARTBEATS / "guard.json").exists())
        wait_until(lambda: all(_has_connection(self.guard_of(index)) for index in range(2)))

    def guard_of(self, index: int) -> psutil.Process:
        """Return the guard of a rank."""
        return self._guards_of(index)[0]

    def everything_of(self, index: int) -> list[psutil.Process]:
        """Return the processes of one machine."""
        return [psutil.Process(self.programs[index].pid), *self._guards_of(index)]

    def end(self, index: int, words: str = "") -> None:
        """Let a rank end: by itself, or by an error with these words."""
        (self.folder / f"end-{index}").write_text(words)

    def block(self, index: int, *, is_ahead: bool = False) -> None:
        """Let a rank wait for ever. `is_ahead`: one part of its work later than the others."""
        if is_ahead:
            (self.folder / f"backward-{index}").touch()
            time.sleep(1)
        (self.folder / f"stuck-{index}").touch()

    @property
    def status(self) -> Mapping[str, object]:
        """Status of the run."""
        return read_words(self.folder / "status.json")

    def wait_for_error(self) -> str:
        """Return why the run has failed."""
        wait_until(lambda: "error" in self.status)
        return str(self.status["error"])

    def _guards_of(self, index: int) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return psutil.Process(self.programs[index].pid).children()
        return []

    def _start(self, index: int) -> "subprocess.Popen[bytes]":
        variables = {
            "RANK": str(index),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "TORCHELASTIC_RUN_ID": "run",
            "MASTER_ADDR": "127.0.0.1",
            "SLURMD_NODENAME": f"node-{index}",
            "TAILOR_PARENT": str(os.getpid()),  # these tests are no torchrun to be ended
        }
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=self.folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextmanager
def guarded_ranks(folder: Path) -> Iterator[GuardedRanks]:
    """Start two ranks in an empty run folder, and end what is left of them."""
    copy = folder / "training"
    copy.mkdir()
    (copy / "__init__.py").touch()
    for room in ("contract", "ranks"):
        shutil.copytree(ROOT / "core" / "training" / room, copy / room)
    silence = copy / "ranks" / "silence.py"
    text = silence.read_text().replace(f"= {SECONDS_WITHOUT_BEAT}", f"= {SECONDS_OF_SILENCE}")
    silence.write_text(text)
    shorten_limits(folder)
    ranks = GuardedRanks(folder)
    left = [process for index in range(2) for process in ranks.everything_of(index)]
    try:
        yield ranks
    finally:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        for program in ranks.programs:
            program.wait()


def _has_connection(guard: psutil.Process) -> bool:
    return any(each.status == "ESTABLISHED" for each in guard.net_connections("tcp"))
