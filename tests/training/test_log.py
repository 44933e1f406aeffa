"""The log of a run: written by the program itself for days, and never more than the disk can take."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.runs.files import log_tail
from core.training.record import log
from tests.builders.paths import ROOT

CHATTERBOX = """
import os, sys
from pathlib import Path
from core.training.record import log

log.MAX_BYTES, log.HEAD_BYTES, log.TAIL_BYTES, log.SECONDS_BETWEEN_CHECKS = 20_000, 1_000, 5_000, 0.001
log.NEEDS_APPEND_MODE = "ab" in sys.argv
path, largest, number = Path(sys.argv[1]), 0, 0
with log.limit_log_size(path):
    while path.stat().st_size >= largest or number < 5000:
        largest, number = max(largest, path.stat().st_size), number + 1
        os.write(1 + number % 2, b"line %d\\n" % number)
    os.write(2, b"last words\\n")
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_BYTES": 20_000, "HEAD_BYTES": 1_000, "TAIL_BYTES": 5_000}.items():
        monkeypatch.setattr(log, name, value)


def numbers(path: Path) -> list[int]:
    return [
        int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("line")
    ]


def test_a_log_that_grew_too_large_keeps_its_beginning_and_its_end(
    tmp_path: Path, small: None
) -> None:
    path = tmp_path / "log.txt"
    with path.open("ab", buffering=0) as program:
        for number in range(3000):
            program.write(b"line %d\n" % number)
        log.shorten(path)
        program.write(b"line 3000\n")  # as if nothing had happened
    kept = numbers(path)
    seam = next(index for index, number in enumerate(kept) if number != index)
    assert (
        path.stat().st_size < 6_100
        and kept == [*range(seam), *range(kept[seam], 3001)]
        and 100 < seam < 200
    )
    assert path.read_text().count("bytes are left out here") == 1
    assert log_tail(tmp_path, 200).endswith("line 2999\nline 3000")


def test_a_log_that_is_small_enough_stays_as_it_is(tmp_path: Path, small: None) -> None:
    (tmp_path / "log.txt").write_bytes(b"x" * 20_000)
    log.shorten(tmp_path / "log.txt")
    assert (tmp_path / "log.txt").stat().st_size == 20_000


@pytest.mark.parametrize("mode", ["ab", "wb"], ids=["appended to", "as on Windows"])
def test_a_chatty_program_does_not_fill_the_disk(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "log.txt"
    with path.open(mode) as file:
        command = [sys.executable, "-c", CHATTERBOX, str(path), mode]
        subprocess.run(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=True, timeout=60
        )
    assert "bytes are left out here" in path.read_text() and path.read_text().endswith(
        "last words\n"
    )
    assert numbers(path)[0] == 1 and path.stat().st_size < 30_000


def test_an_output_that_is_no_such_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with path.open(
        "wb"
    ) as file:  # as a shell's `>` does: cut, it would be written on far behind its end
        command = [sys.executable, "-c", f"from core.training.record import log; from pathlib import Path; "
                   f"print(log._is_log_of_this_process(Path({str(path)!r})))"]  # fmt: skip
        subprocess.run(command, cwd=ROOT, stdout=file, check=True)
    assert path.read_text() == "False\n"
