"""Fixtures of the tests of runs."""

import pytest

from core import runs
from core.runs import Run
from core.training.contract.files import write_json
from tests.builders.fake_runs import FINISHED, NewRun


@pytest.fixture
def finished(new_run: NewRun) -> Run:
    """Return a run whose status.json says that it has finished."""
    run = new_run(lora_r=4)
    write_json(run.folder / "status.json", FINISHED)
    return runs.read(run.home, run.id)
