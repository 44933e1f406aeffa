"""Size limit of log.txt."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.runs.files import log_tail
from core.training.record import log
from tests.builders.paths import ROOT

SMALL = {"MAX_BYTES": 20_000, "HEAD_BYTES": 1_000, "TAIL_BYTES": 5_000}
NOTE = "bytes are left out here"
NOTE_BYTES = 100
"""More than the line that stands for the removed bytes."""
NUM_LINES = 3000

CHATTY_PROGRAM = f"""
import os, sys
from pathlib import Path
from core.training.record import log

for name, value in {SMALL}.items():
    setattr(log, name, value)
log.SECONDS_BETWEEN_CHECKS = 0.001
log.NEEDS_APPEND_MODE = "ab" in sys.argv
path, largest, number = Path(sys.argv[1]), 0, 0
with log.limit_log_size(path):
    while path.stat().st_size >= largest or number < 5000:
        largest, number = max(largest, path.stat().st_size), number + 1
        os.write(1 + number % 2, b"line %d\\n" % number)
    os.write(2, b"last words\\n")
"""
"""Prints until its log was shortened."""
SILENT_PROGRAM = """
import sys, time
from pathlib import Path
from core.training.record import log

log.MAX_BYTES, log.HEAD_BYTES, log.TAIL_BYTES, log.SECONDS_BETWEEN_CHECKS = 5, 1, 1, 0.001
print("only line", flush=True)
with log.limit_log_size(Path(sys.argv[1])):
    time.sleep(0.1)
"""
"""Would shorten its log at once."""


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(log, name, value)


@pytest.fixture
def shortened(tmp_path: Path, small_limits: None) -> Path:
    """Write a log that was shortened once, between two lines of the program."""
    path = tmp_path / "log.txt"
    with path.open("ab", buffering=0) as program:
        for number in range(NUM_LINES):
            program.write(b"line %d\n" % number)
        log.shorten(path)
        program.write(b"line %d\n" % NUM_LINES)
    return path


def numbers_in(path: Path) -> list[int]:
    lines = path.read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("line")]


def test_a_log_that_is_too_large_keeps_its_beginning_and_end(shortened: Path) -> None:
    kept = numbers_in(shortened)
    num_first = next(index for index, number in enumerate(kept) if number != index)
    assert kept == [*range(num_first), *range(kept[num_first], NUM_LINES + 1)]
    assert 100 < num_first < 200, "about a thousand bytes of the beginning"


def test_a_shortened_log_is_as_small_as_promised(shortened: Path) -> None:
    limit = SMALL["HEAD_BYTES"] + SMALL["TAIL_BYTES"] + NOTE_BYTES
    assert shortened.stat().st_size < limit


def test_a_shortened_log_says_once_that_bytes_are_missing(shortened: Path) -> None:
    assert shortened.read_text().count(NOTE) == 1


def test_the_tail_of_a_shortened_log_is_read(shortened: Path) -> None:
    assert log_tail(shortened.parent, 200).endswith(f"line {NUM_LINES - 1}\nline {NUM_LINES}")


def test_a_log_that_is_small_enough_is_left_alone(tmp_path: Path, small_limits: None) -> None:
    (tmp_path / "log.txt").write_bytes(b"x" * SMALL["MAX_BYTES"])
    log.shorten(tmp_path / "log.txt")
    assert (tmp_path / "log.txt").stat().st_size == SMALL["MAX_BYTES"]


@pytest.mark.parametrize("mode", ["ab", "wb"], ids=["append mode", "as on Windows"])
def test_a_chatty_program_does_not_fill_the_disk(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "log.txt"
    command = [sys.executable, "-c", CHATTY_PROGRAM, str(path), mode]
    with path.open(mode) as file:
        subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=True, timeout=60)
    text = path.read_text()
    assert NOTE in text
    assert text.endswith("last words\n")
    assert numbers_in(path)[0] == 1
    assert path.stat().st_size < 1.5 * SMALL["MAX_BYTES"]


def test_a_log_that_is_not_in_append_mode_is_left_alone(tmp_path: Path) -> None:
    # A shell's `>` opens it so: after a cut, the program would write far behind the new end.
    path = tmp_path / "log.txt"
    with path.open("wb") as file:
        command = [sys.executable, "-c", SILENT_PROGRAM, str(path)]
        subprocess.run(command, cwd=ROOT, stdout=file, check=True)
    assert path.read_text() == "only line\n"
