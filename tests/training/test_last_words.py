"""Test which rank is named as the cause, where no leader watches them."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.training.contract.failures import Failure
from core.training.contract.files import write_json
from core.training.ranks import Rank, first_cause, report_failure

FIRST = Rank(0, 3)
NAME = "Process {} of 3, on device 0 of node"
LOST = Failure("unknown", "RuntimeError: gloo: Connection closed by peer")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node")
    monkeypatch.setattr("core.training.ranks.last_words.SECONDS_TO_WAIT", 0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a run folder in which three ranks beat."""
    (tmp_path / "ranks").mkdir()
    for index in range(3):
        path = tmp_path / "ranks" / f"{index}.json"
        write_json(path, {"pid": 1, "has_ended": False})
        moment = time.time() + 60
        os.utime(path, (moment, moment))
    return tmp_path


def test_own_failure_of_the_first_rank_is_the_cause(folder: Path) -> None:
    found = first_cause(folder, FIRST, Failure("out_of_memory", "The GPU is full."))
    expected = ("out_of_memory", f"{NAME.format(1)}: The GPU is full.")
    assert (found.cause, found.sentence) == expected


def test_failure_of_another_rank_is_the_cause_of_lost_contact(folder: Path) -> None:
    write_json(folder / "ranks" / "1.failure.json", {"sentence": LOST.sentence})
    failure = Failure("out_of_memory", "The GPU is full.", free_bytes=7)
    report_failure(folder, Rank(2, 3), failure)
    found = first_cause(folder, FIRST, LOST)
    assert found == replace(failure, sentence=f"{NAME.format(3)}: The GPU is full.")


def test_rank_that_beats_no_more_was_killed(folder: Path) -> None:
    path = folder / "ranks" / "1.json"
    write_json(path, {"pid": 1, "name": NAME.format(2), "has_ended": False})
    os.utime(path, (1, 1))
    said = f"{NAME.format(2)}, was killed"
    assert first_cause(folder, FIRST, LOST).sentence.startswith(said)


def test_lost_contact_without_a_trace_is_said(folder: Path) -> None:
    assert first_cause(folder, FIRST, LOST).sentence.startswith("Another process was killed")
