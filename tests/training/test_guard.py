"""Test the guards of ranks on several machines: what is the cause, and who ends."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from core.training.ranks.rank import read_words
from tests.builders.guarded_ranks import GuardedRanks, guarded_ranks
from tests.builders.ranks import processes_in, wait_until

pytestmark = pytest.mark.training
HANGS = "Process {} of 2, on device 0 of node-{}, has not answered for 4 s, so all were ended."
SECONDS_TO_END = 20
SECONDS_TO_MEASURE = 5
"""Time for marks enough for a limit."""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[GuardedRanks]:
    with guarded_ranks(tmp_path) as started:
        yield started


@pytest.mark.parametrize("index", [0, 1])
def test_a_rank_that_hangs_ends_all_and_is_named(ranks: GuardedRanks, index: int) -> None:
    ranks.programs[index].send_signal(signal.SIGSTOP)
    assert ranks.wait_for_error() == HANGS.format(index + 1, index)
    assert [program.wait(SECONDS_TO_END) for program in ranks.programs] == [-9, -9]
    wait_until(lambda: not processes_in(ranks.folder))


@pytest.mark.parametrize("index", [0, 1])
def test_a_rank_that_was_killed_ends_all_and_is_named(ranks: GuardedRanks, index: int) -> None:
    ranks.programs[index].kill()
    said = f"Process {index + 1} of 2, on device 0 of node-{index}, was killed or has crashed"
    assert ranks.wait_for_error().startswith(said)
    assert ranks.programs[1 - index].wait(SECONDS_TO_END) == -9


@pytest.mark.parametrize("index", [0, 1])
def test_a_machine_that_hangs_is_named(ranks: GuardedRanks, index: int) -> None:
    for process in reversed(ranks.everything_of(index)):
        process.suspend()
    said = f"Process {index + 1} of 2, on device 0 of node-{index}, cannot be reached for 4 s"
    assert ranks.wait_for_error().startswith(said)
    assert ranks.programs[1 - index].wait(SECONDS_TO_END) == -9


def test_an_error_of_a_rank_ends_the_others_and_is_the_cause(ranks: GuardedRanks) -> None:
    ranks.end(1, "The disk is full.")
    said = "Process 2 of 2, on device 0 of node-1: The disk is full."
    assert ranks.wait_for_error() == said
    assert ranks.programs[0].wait(SECONDS_TO_END) == -9


def test_ranks_that_finish_leave_no_guard_and_no_error(ranks: GuardedRanks) -> None:
    ranks.end(0)
    assert ranks.programs[0].wait(SECONDS_TO_END) == 0
    with pytest.raises(psutil.TimeoutExpired):  # it may go on for long
        psutil.Process(ranks.programs[1].pid).wait(6)
    ranks.end(1)
    assert ranks.programs[1].wait(SECONDS_TO_END) == 0
    wait_until(lambda: not processes_in(ranks.folder))
    assert "error" not in ranks.status


@pytest.mark.parametrize("index", [0, 1])
def test_a_guard_that_was_killed_is_replaced(ranks: GuardedRanks, index: int) -> None:
    guard = ranks.guard_of(index)
    guard.kill()
    wait_until(lambda: ranks.guard_of(index).pid != guard.pid)
    with pytest.raises(psutil.TimeoutExpired):
        psutil.Process(ranks.programs[1 - index].pid).wait(6)
    ranks.programs[1].send_signal(signal.SIGSTOP)
    assert ranks.wait_for_error() == HANGS.format(2, 1)


def test_a_job_that_is_suspended_as_a_whole_goes_on(ranks: GuardedRanks) -> None:
    every = [process for index in range(2) for process in ranks.everything_of(index)]
    for process in every:
        process.suspend()
    with pytest.raises(psutil.TimeoutExpired):
        every[0].wait(7)
    for process in every:
        process.resume()
    with pytest.raises(psutil.TimeoutExpired):
        every[0].wait(2)
    assert "error" not in ranks.status


def test_ranks_that_are_stuck_end_and_the_one_behind_is_named(ranks: GuardedRanks) -> None:
    time.sleep(SECONDS_TO_MEASURE)
    ranks.block(0, is_ahead=True)
    ranks.block(1)
    error = ranks.wait_for_error()
    assert error.startswith("Process 2 of 2, on device 0 of node-1, has come no further for")
    assert ranks.status["cause"] == "stuck"
    assert [program.wait(SECONDS_TO_END) for program in ranks.programs] == [-9, -9]


def test_ranks_that_wait_for_each_other_end(ranks: GuardedRanks) -> None:
    time.sleep(SECONDS_TO_MEASURE)
    ranks.block(0)
    ranks.block(1)
    assert ranks.wait_for_error().startswith("The processes wait for each other, for ")


def test_a_rank_that_stands_still_ends_nothing_while_another_gets_on(ranks: GuardedRanks) -> None:
    time.sleep(SECONDS_TO_MEASURE)
    ranks.block(1)
    with pytest.raises(psutil.TimeoutExpired):
        psutil.Process(ranks.programs[1].pid).wait(20)
    assert read_words(ranks.folder / "ranks" / "1.json")["standstill"]
    assert "error" not in ranks.status


def test_strangers_are_not_believed(ranks: GuardedRanks) -> None:
    place = read_words(ranks.folder / "ranks" / "guard.json")
    failure = {"index": 1, "sentence": "It was me.", "cause": "signal"}
    with socket.create_connection((str(place["host"]), int(str(place["port"])))) as link:
        for words in ({"token": "guess", "rank": 1}, {"failure": failure}):
            link.sendall(json.dumps(words).encode() + b"\n")
        assert link.recv(100) == b""
    assert "error" not in ranks.status


@pytest.mark.parametrize(
    "line", [b"[" * 60_000, b'{"token": "\xc3\xa4", "rank": 1}', b'{"token": "\\ud800"}', b"\xff"]
)
def test_no_line_of_a_stranger_ends_the_guard(ranks: GuardedRanks, line: bytes) -> None:
    guard = ranks.guard_of(0)
    place = read_words(ranks.folder / "ranks" / "guard.json")
    with socket.create_connection((str(place["host"]), int(str(place["port"])))) as link:
        link.sendall(line + b"\n")
        with suppress(ConnectionResetError):  # closed before all was read
            assert link.recv(100) == b""
    with pytest.raises(psutil.TimeoutExpired):
        guard.wait(3)


def test_many_strangers_keep_no_rank_out(ranks: GuardedRanks) -> None:
    place = read_words(ranks.folder / "ranks" / "guard.json")
    address = (str(place["host"]), int(str(place["port"])))
    with ExitStack() as links:
        for _ in range(200):
            links.enter_context(socket.create_connection(address))
        ranks.programs[1].send_signal(signal.SIGSTOP)
        assert ranks.wait_for_error() == HANGS.format(2, 1)
