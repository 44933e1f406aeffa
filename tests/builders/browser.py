"""Run a real `python app.py` for browser tests, and do on its page what a person does."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.builders.paths import ROOT
from tests.builders.ports import free_port

DEMO = ROOT / "presets" / "demo"
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]
START_SECONDS = 180
"""Far more than it takes: a busy machine is no fault of the page."""
TRAINING_MS = 240_000
BROWSER_TESTS = [
    pytest.mark.browser,
    pytest.mark.training,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("TAILOR_REQUIRE_BROWSER"),
        reason="needs chromium (apt install chromium)",
    ),
]
expect.set_options(timeout=30_000)


class App:
    """Running `python app.py`, on a free port if none is given."""

    def __init__(
        self,
        home: Path,
        *flags: str,
        port: int | None = None,
        program: Sequence[str] = ("app.py",),
        log: Path | None = None,
    ):
        """Start the page. `log` gets what it prints as errors."""
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        command = [
            sys.executable,
            *program,
            "--no-browser",
            "--port",
            str(self.port),
            "--home",
            str(home),
            *flags,
        ]
        errors = log.open("ab") if log else None
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        if errors:
            errors.close()
        self.started = time.monotonic()
        while not self._answers():
            assert self.process.poll() is None, "the app ended before the page came up"
            assert time.monotonic() - self.started < START_SECONDS, "the page never came up"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url, timeout=5).status_code in (200, 401)
        except httpx.HTTPError:
            return False

    def end(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the app unless it has ended. Kill it if it ignores the signal.

        A background job of a shell may ignore SIGINT.
        """
        if self.process.poll() is None:
            self.process.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            self.process.kill()
            self.process.wait()


def open_form(page: Page, app: App) -> None:
    """Open the page, wait for the estimate of the demo, and show the command line of the form."""
    page.goto(app.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits")
    page.get_by_text("Command line").click()
    expect(page.locator("#command")).to_contain_text("train --demo")


def set_number(page: Page, field: str, value: float) -> None:
    """Type a number that is not the default, and wait until the app has received it."""
    page.locator(f"#field-{field} input").fill(f"{value:g}")
    wait_for_flag(page, field, f"{value:g}")


def choose(page: Page, field: str, text: str, value: str) -> None:
    """Type into a searchable menu, pick the first match, and wait until the app has its value."""
    box = page.locator(f"#field-{field} input")
    box.click()
    box.fill(text[:-1])
    box.press_sequentially(text[-1])  # Gradio filters at the press of a key
    page.get_by_role("option").first.click()
    wait_for_flag(page, field, value)


def choose_method(page: Page, label: str, method: str) -> None:
    """Press a method, and wait until the app has received it."""
    page.get_by_label(label, exact=True).check()
    wait_for_flag(page, "method", method)


def wait_for_flag(page: Page, field: str, value: str) -> None:
    """Wait until the command line on the page has a flag, which shows that the app knows it."""
    flag = rf"--{field.replace('_', '-')} '?{re.escape(value)}'?( |$)"
    expect(page.locator("#command")).to_contain_text(re.compile(flag))


def press(page: Page, name: str, *, exact: bool = False) -> None:
    """Press the button whose name has these words, or is these words."""
    page.get_by_role("button", name=name, exact=exact).click()


def unfold(page: Page, heading: str) -> None:
    """Open a folded section, and wait a moment, as a person does.

    Gradio sets the values of the fields in it one frame after it shows them, and would overwrite
    text that was typed before.
    """
    page.get_by_text(heading).click()
    page.wait_for_timeout(300)


def state(page: Page) -> Locator:
    """Return the element that says what the shown run is doing."""
    return page.locator("#run-header .state")


def wait_until_finished(page: Page) -> None:
    expect(state(page)).to_contain_text("Finished", timeout=TRAINING_MS)


def points_of(page: Page, plot: str) -> int:
    """Return the number of points of a plot's first line."""
    script = (
        "plot => document.querySelector(`#plot-${plot} .js-plotly-plot`)?.data?.[0]?.x?.length ?? 0"
    )
    return int(page.evaluate(script, plot))


def wait_for_points(page: Page, plot: str, num_points: int) -> None:
    deadline = time.monotonic() + TRAINING_MS / 1000
    while points_of(page, plot) < num_points:
        assert time.monotonic() < deadline, f"{plot} has {points_of(page, plot)} points"
        page.wait_for_timeout(200)
