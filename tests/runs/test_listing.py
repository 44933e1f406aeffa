"""List of runs: complete, up to date, and cheap to poll."""

import json
import os

import pytest

from core import runs
from core.job import JobSpec
from core.runs import Home, edits, listing, queue
from core.training.contract.files import write_json
from tests.builders.fake_runs import (
    FINISHED,
    NEVER_END,
    NewRun,
    bare_run,
)


@pytest.mark.parametrize("number_of_runs", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_an_unchanged_list_of_many_runs_is_not_read_again(home: Home, number_of_runs: int) -> None:
    job, status = JobSpec.parse({}).to_json(), json.dumps(FINISHED)
    for number in range(number_of_runs):
        folder = home.runs / f"run-{number:05d}"
        folder.mkdir()
        (folder / "job.json").write_text(job)
        (folder / "status.json").write_text(status)
        os.utime(folder, (number, number))
    os.utime(home.runs, (1, 1))
    assert len(runs.listing.list_runs(home)) == number_of_runs
    # a file that is written in place leaves the time of its folder as it was
    (home.runs / "run-00000/status.json").write_text("{}")
    listed, mark = runs.listing.list_runs(home), listing.list_fingerprint(home)
    assert runs.listing.list_runs(home) is listed
    assert listing.list_fingerprint(home) == mark
    assert {run.state for run in listed} == {"finished"}


def test_the_list_follows_new_changed_and_removed_runs(home: Home) -> None:
    mark = listing.list_fingerprint(home)
    folder = bare_run(home, "a")
    assert [run.id for run in runs.listing.list_runs(home)] == ["a"]
    assert (after := listing.list_fingerprint(home)) != mark
    edits.annotate(home, "a", title="New name")
    assert runs.listing.list_runs(home)[0].name == "New name"
    assert (last := listing.list_fingerprint(home)) != after
    folder.rename(home.path / "elsewhere")
    assert runs.listing.list_runs(home) == ()
    assert listing.list_fingerprint(home) != last


def test_a_change_by_another_process_is_seen(home: Home) -> None:
    folder = bare_run(home, "a")
    for place in (folder, home.runs):
        os.utime(place, (1, 1))
    assert runs.listing.list_runs(home)[0].state == "finished"
    write_json(folder / "status.json", {"state": "failed", "error": "Lost."})
    home.touch()
    assert runs.listing.list_runs(home)[0].error == "Lost."


def test_a_waiting_run_is_in_the_list_at_once(home: Home, new_run: NewRun) -> None:
    queue.submit(home, new_run(seed=NEVER_END))
    runs.listing.list_runs(home)
    second = queue.submit(home, new_run())
    assert {run.id: run.state for run in runs.listing.list_runs(home)}[second.id] == "queued"


def test_a_second_change_within_the_resolution_of_the_clock_is_seen(home: Home) -> None:
    folder = bare_run(home, "a")
    assert runs.listing.list_runs(home)[0].state == "finished"
    stat = folder.stat()
    write_json(folder / "status.json", {"state": "failed"})
    os.utime(folder, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert runs.listing.list_runs(home)[0].state == "failed"


def test_runs_are_found_by_their_words(home: Home) -> None:
    bare_run(home, "one", method="qlora")
    bare_run(home, "two")
    edits.annotate(home, "two", title="Ärger", notes="to the moon", tags=["paper"])
    listed = runs.listing.list_runs(home)
    for words, ids in {
        "QLORA": ["one"],
        "moon PAPER": ["two"],
        "ärger": ["two"],
        "moon qlora": [],
        "": 2,
    }.items():
        found = [run.id for run in listing.search(listed, words)]
        assert found == ids or len(found) == ids, words
