"""What several tests stand on: a home of their own, and a training program that takes no time."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import launch, runs
from core.resolve import resolve
from core.runs import Home, Run

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network

FAKE_PROGRAM = Path(__file__).parent / "fake_program"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """An empty home; whatever still runs in it afterwards is killed."""
    place = Home.find(str(tmp_path / "home"))
    yield place
    for run in runs.list_runs(place):
        if run.is_active or (run.folder / "process.json").exists():
            launch.kill(run)


@pytest.fixture
def fake_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs execute tests/fake_program instead of the training program."""
    monkeypatch.setattr(runs, "PROGRAM", FAKE_PROGRAM)


@pytest.fixture
def new_run(home: Home, fake_program: None):
    """Makes a run of the demo job in `home`, not yet started: new_run(seed=...)."""

    def make(**fields: object) -> Run:
        resolved = resolve(fields)
        return runs.create(home, resolved, resolved.estimate().to_json())

    return make
