"""Fixtures of the tests of runs."""

from pathlib import Path

import pytest

from core import runs
from core.runs import Run
from core.training.contract.files import write_json
from tests.builders.fake_runs import FINISHED, NewRun
from tests.builders.fake_slurm import FakeSlurm, put_on_path


@pytest.fixture
def finished(new_run: NewRun) -> Run:
    """Return a run whose status.json says that it has finished."""
    run = new_run(lora_r=4)
    write_json(run.folder / "status.json", FINISHED)
    return runs.read(run.home, run.id)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Return the commands of a Slurm on the PATH, where a job waits. It is asked every time."""
    monkeypatch.setattr("core.runs.clusters.SECONDS_BETWEEN_QUESTIONS", 0)
    slurm = put_on_path(tmp_path / "commands", monkeypatch)
    slurm.says("squeue", "7|PENDING|Priority|0|\n")
    return slurm
