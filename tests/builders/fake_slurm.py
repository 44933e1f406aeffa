"""Commands of Slurm that do nothing: they print what a test wrote, and keep what was asked."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders.ranks import wait_until

COMMAND = """#!/bin/sh
echo '{name}' "$*" >> '{folder}/asked.txt'
while [ -f '{folder}/{name}.hangs' ]; do sleep 0.02; done
if [ -f '{folder}/{name}.error' ]; then cat '{folder}/{name}.error' >&2; exit 1; fi
cat '{folder}/{name}.txt' 2>/dev/null
exit 0
"""


class FakeSlurm:
    """Folder of fake commands. `says` sets what one of them prints."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("sbatch", "squeue", "sacct", "scancel", "sinfo", "srun"):
            path = folder / name
            path.write_text(COMMAND.format(folder=folder, name=name))
            path.chmod(0o755)
        self.says("sbatch", "7\n")
        self.says("sinfo", "cpu|up|(null)\ngpu*|up|gpu:a100:4\nold|down|(null)\n")

    def says(self, name: str, text: str) -> None:
        """Let a command print a text."""
        (self.folder / f"{name}.txt").write_text(text)

    def refuses(self, name: str, text: str) -> None:
        """Let a command fail with a text."""
        (self.folder / f"{name}.error").write_text(text)

    @contextmanager
    def hangs(self, name: str) -> Iterator[None]:
        """Let a command not answer for some time."""
        path = self.folder / f"{name}.hangs"
        path.touch()
        try:
            yield
        finally:
            path.unlink()

    def was_asked(self, name: str) -> bool:
        """Return True if a command was called."""
        return any(line.startswith(name) for line in self.asked)

    @property
    def asked(self) -> list[str]:
        """Commands that were called, with their words, the oldest first."""
        path = self.folder / "asked.txt"
        return path.read_text().splitlines() if path.exists() else []


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Let this process find the fake commands first."""
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return FakeSlurm(folder)


@contextmanager
def hanging(slurm: FakeSlurm, name: str, act: Callable[[], object]) -> Iterator["Future[object]"]:
    """Act in another thread, where a command of Slurm does not answer until the block ends."""
    num_asked = len(slurm.asked)
    with ThreadPoolExecutor() as pool, slurm.hangs(name):
        acting = pool.submit(act)
        wait_until(lambda: any(line.startswith(name) for line in slurm.asked[num_asked:]))
        yield acting
