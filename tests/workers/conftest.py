"""Converters to GGUF for the tests that need real ones."""

import os
from pathlib import Path

import pytest

from core.after_training.export.tools import FOLDER_VARIABLE, install
from core.job import SpecError
from core.runs import Home


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
