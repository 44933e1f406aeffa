"""Converters to GGUF for the tests that need real ones, and a run for them."""

import os
import shutil
from pathlib import Path

import pytest

from core.after_training.export.tools import FOLDER_VARIABLE, install
from core.job import SpecError
from core.runs import Home, Run, read


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the converters; skip without one."""
    if os.environ.get(FOLDER_VARIABLE):
        return Path(os.environ[FOLDER_VARIABLE])
    home = Home.find(str(tmp_path_factory.mktemp("home")))
    try:
        return install(home)
    except SpecError as error:
        pytest.skip(f"no converters: {error.reason}")


@pytest.fixture(scope="session")
def trained_qlora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of qlora."""
    from tests.builders.training_runs import FINISHED, make_run, train  # imports torch

    folder = tmp_path_factory.mktemp("runs") / "short-qlora"
    make_run(folder, method="qlora", max_steps=60)
    assert train(folder) == FINISHED
    return folder


@pytest.fixture
def run(trained_qlora: Path, home: Home, tools: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a copy of the run in a home of the test, with the converters."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tools))
    shutil.copytree(trained_qlora, home.runs / trained_qlora.name)
    return read(home, trained_qlora.name)
