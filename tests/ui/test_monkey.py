"""Random use of the page in a browser. Leave it running for longer with

MONKEY_SECONDS=1800 MONKEY_SEEDS=1,2,3,4,5 .venv/bin/python -m pytest -m monkey
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.builders.browser import BROWSER_TESTS, App
from tests.builders.monkey import SIZES, Monkey, tracebacks_in
from tests.builders.paths import FAKE_PROGRAM

pytestmark = [*BROWSER_TESTS, pytest.mark.slow, pytest.mark.monkey]

SECONDS = float(os.environ.get("MONKEY_SECONDS", "180"))
"""Time for all seeds and sizes together."""
SEEDS = [int(seed) for seed in os.environ.get("MONKEY_SEEDS", "1").split(",")]
SECONDS_TO_FIND = 60
PROGRAM = f"""
import sys
from pathlib import Path
import app, core.runs.creation
core.runs.creation.PROGRAM = Path({str(FAKE_PROGRAM)!r})
{{fault}}
sys.exit(app.main(sys.argv[1:]))
"""
BROKEN_HANDLER = """
from ui.render import estimate
def fail(*_values): raise KeyError("a fault that was put in")
estimate.estimate_panel = fail
"""
FLAT = ".js-plotly-plot { height: 20px !important; overflow: hidden }"


def app_with(fault: str, home: Path) -> App:
    """Start the page with a fast training program, and with a fault if one is given."""
    return App(home, program=("-c", PROGRAM.format(fault=fault)), log=home / "page.log")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


@pytest.fixture
def faulty_app(folder: Path) -> Iterator[App]:
    app = app_with(BROKEN_HANDLER, folder)
    yield app
    app.end()


@pytest.fixture
def monkey_app(folder: Path) -> Iterator[App]:
    app = app_with("", folder)
    yield app
    app.end()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", SIZES)
def test_random_use_finds_nothing(
    size: str, seed: int, monkey_app: App, browser_page: Page, folder: Path
) -> None:
    width, height = SIZES[size]
    browser_page.set_viewport_size({"width": width, "height": height})
    monkey = Monkey(browser_page, monkey_app.url, seed)
    monkey.play(SECONDS / len(SEEDS) / len(SIZES))
    assert monkey.complaints == []
    assert tracebacks_in(folder / "page.log") == []


def test_an_exception_in_a_handler_is_found(faulty_app: App, browser_page: Page) -> None:
    monkey = Monkey(browser_page, faulty_app.url, seed=1)
    monkey.play(SECONDS_TO_FIND)
    assert "went wrong in Tailor" in monkey.complaints[0]


def test_a_flat_plot_is_found(monkey_app: App, browser_page: Page) -> None:
    browser_page.add_init_script(
        "addEventListener('load', () => { const style = document.createElement('style');"
        f"style.textContent = {FLAT!r}; document.head.append(style) }})"
    )
    monkey = Monkey(browser_page, monkey_app.url, seed=2)
    browser_page.goto(monkey_app.url)
    browser_page.locator("#start:enabled").click()
    browser_page.locator("#plot-loss .js-plotly-plot").wait_for()
    monkey.look()
    assert "flat" in monkey.complaints[0]
