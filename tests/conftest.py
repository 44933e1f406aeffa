"""Fixtures of many tests: a home, a fast stand-in for the training program, a page in a browser."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core import runs
from core.resolve import resolve
from core.runs import Home, Run, launch
from core.runs.listing import list_runs
from tests.builders.paths import FAKE_PROGRAM

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.builders.browser import App

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """Exclude loaded libraries and tests from garbage collection.

    Libraries collect garbage at every training, which would take 0.3 s each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Return an empty home. Kill every run in it afterwards."""
    place = Home.find(str(tmp_path / "home"))
    yield place
    for run in list_runs(place) if place.runs.exists() else ():
        if run.is_active or (run.folder / "process.json").exists():
            launch.kill(run)


@pytest.fixture
def fake_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs execute tests/builders/fake_program instead of the training program."""
    monkeypatch.setattr("core.runs.creation.PROGRAM", FAKE_PROGRAM)


@pytest.fixture
def new_run(home: Home, fake_program: None):
    """Return a function that creates a run of the demo job in `home`: new_run(seed=...)."""

    def make(**fields: object) -> Run:
        resolved = resolve(fields)
        return runs.create(home, resolved, resolved.estimate().to_json())

    return make


@pytest.fixture
def start_app(home: Home) -> Iterator[Callable[[], "App"]]:
    """Return a function that starts the page over `home`."""
    from tests.builders.browser import App

    apps: list[App] = []

    def start() -> App:
        apps.append(App(home.path))
        return apps[-1]

    yield start
    for app in apps:
        app.end()


@pytest.fixture
def app(start_app: Callable[[], "App"]) -> "App":
    """Return the page over `home`."""
    return start_app()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Return a chromium without a window."""
    from playwright.sync_api import sync_playwright

    from tests.builders.browser import CHROMIUM, QUIET

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)


@pytest.fixture
def browser_page(browser: "Browser") -> Iterator["Page"]:
    """Return an empty tab whose errors the test looks at."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    yield tab
    tab.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """Return an empty tab. An error of a script in it fails the test."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    yield tab
    tab.close()
    assert complaints == []
