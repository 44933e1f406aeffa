"""Test what the leader of several ranks says of those that ended without a word."""

import json
import os
import subprocess
import sys
from pathlib import Path

from core.training.ranks.leader import SECONDS_WITHOUT_BEAT, Watch, silent_ending, watch_ranks
from core.training.ranks.torchrun import NOTE


def watches_of_ended_ranks(run: Path, num_ranks: int) -> list[Watch]:
    """Return watches of processes that have ended and wrote nothing but a heartbeat."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (run / "ranks").mkdir()
    watches = [Watch(run / "ranks" / f"{index}.json") for index in range(num_ranks)]
    for watch in watches:
        watch.heartbeat.write_text(json.dumps({"pid": process.pid, "has_ended": False}))
        watch.look()
    return watches


def test_of_ranks_that_ended_together_the_first_is_named(tmp_path: Path) -> None:
    watches = watches_of_ended_ranks(tmp_path, 3)
    (tmp_path / NOTE).write_text(json.dumps({"rank": 1, "exit_code": -9}))
    assert silent_ending(watches).sentence.startswith("Process 2 of 3, on device 1, was killed")


def test_a_rank_is_named_when_torchrun_named_none(tmp_path: Path) -> None:
    watches = watches_of_ended_ranks(tmp_path, 2)
    assert silent_ending(watches).sentence.startswith("Process 1 of 2, on device 0, was killed")


def test_a_rank_that_answers_too_late_is_still_named(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    watch = Watch(tmp_path / "ranks" / "0.json")
    watch.heartbeat.write_text(json.dumps({"pid": os.getpid(), "has_ended": False}))
    watch.look()
    watch.silence.seconds += SECONDS_WITHOUT_BEAT
    beat = "import pathlib, sys, time; time.sleep(0.5); pathlib.Path(sys.argv[1]).touch()"
    with subprocess.Popen([sys.executable, "-c", beat, str(watch.heartbeat)]) as program:
        ending = watch_ranks(program, [watch])
    assert ending.sentence.startswith("Process 1 of 1, on device 0, has not answered for")
    assert not watch.is_silent
