"""Test what is said of exports that ended without their last words."""

import shutil
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path

import pytest

from core.after_training.export import ExportStatus, launch
from core.after_training.export.plan import ExportPlan
from core.after_training.export.records import (
    PROCESS,
    STATUS,
    ExportRequest,
    unfinished_folder,
)
from core.after_training.export.sentences import export_facts
from core.runs import Home, Run, read
from core.training.contract.files import write_json
from tests.builders.fake_runs import bare_run

NAME = "merged"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def run(home: Home) -> Run:
    """Return a run whose export was under way in a process that is gone."""
    bare_run(home, "made")
    run = read(home, "made")
    folder = unfinished_folder(run, NAME)
    folder.mkdir(parents=True)
    write_json(folder / STATUS, asdict(ExportStatus("running", "Merging")))
    write_json(folder / PROCESS, {"pid": 2**22 + 1, "created": 0.0})
    return run


def test_a_full_disk_that_takes_no_last_word_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10, 10, 0))
    assert "the disk is full" in launch.status_of(run, NAME).error


def test_a_killed_export_says_that_it_continues(run: Run) -> None:
    assert launch.status_of(run, NAME).fix == launch.RESUMES


def test_an_export_of_a_deleted_run_says_so(run: Run) -> None:
    shutil.rmtree(run.folder)
    status = launch.status_of(run, NAME)
    assert (status.state, status.error) == ("failed", "The run was deleted while it was exported.")


def test_the_plan_of_a_small_export_has_a_size(tmp_path: Path) -> None:
    request = ExportRequest("merged", NAME, "trained", str(tmp_path), "")
    assert export_facts(ExportPlan(request, 400 * 1024, 0, 60.0)).startswith("400 KiB · ")
