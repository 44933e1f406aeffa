"""Handlers of the page and the command line on an empty home, with a quick training program."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import app
from core.runs import Home
from tests.builders.fake_slurm import FakeSlurm, put_on_path
from tests.builders.page import FormPage
from ui.handlers import Handlers


@pytest.fixture
def handlers(home: Home, fake_program: None) -> Iterator[Handlers]:
    made = Handlers(home)
    yield made
    made.close()


@pytest.fixture
def page_form(handlers: Handlers) -> FormPage:
    """Return an open page with the demo in its form."""
    return FormPage(handlers)


@pytest.fixture
def tailor(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that calls the command line on the test's home."""
    monkeypatch.setenv("TAILOR_HOME", str(home.path))
    return lambda *arguments: app.main([str(argument) for argument in arguments])


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Return the commands of a Slurm on the PATH, where a job waits."""
    slurm = put_on_path(tmp_path / "commands", monkeypatch)
    slurm.says("squeue", "7|PENDING|Priority|0|\n")
    return slurm
