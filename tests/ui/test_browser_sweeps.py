"""Test a sweep in a real browser: a run fails, terminal and page are killed, one is stopped."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from core.after_training.compare import Comparison, record
from core.runs import Home, read
from tests.builders.browser import BROWSER_TESTS, TRAINING_MS, App, press
from tests.builders.paths import ROOT

pytestmark = BROWSER_TESTS
SWEEP = ("--methods", "lora", "--axis", "learning_rate=1e-3,2e-3,5e-3", "--axis", "lora_r=4,8")
SECONDS = 400


def sweep_of(home: Home, has: Callable[[Comparison], bool]) -> Comparison:
    """Wait until the only comparison of a home is as wanted."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = record.list_comparisons(home)
        if found and has(found[0]):
            return found[0]
        time.sleep(0.05)
    raise AssertionError("the sweep never came so far")


@pytest.mark.slow
def test_sweep_survives_a_failure_a_kill_and_a_stop(
    start_app: Callable[[], App], page: Page, home: Home
) -> None:
    command = [sys.executable, "app.py", "compare", "--demo", *SWEEP, "--max-steps", "4"]
    terminal = subprocess.Popen(
        [*command, "--home", str(home.path)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    sweep_of(home, lambda found: bool(found.trials[0].id))
    terminal.kill()  # before it has created all runs
    terminal.wait()
    first_app = start_app()
    sweep = sweep_of(home, lambda found: all(trial.id for trial in found.trials))
    first_app.end(signal.SIGKILL)
    page.goto(start_app().url)
    (home.runs / sweep.trials[3].id / read(home, sweep.trials[3].id).job.dataset).unlink()

    page.get_by_role("tab", name="Runs").click()
    page.locator("#comparisons-panel").get_by_text("Comparisons", exact=True).click()
    expect(page.locator("#comparison-runs")).to_contain_text("LoRA, learning_rate 0.005, lora_r 8")
    page.locator("#chosen-trial input").click()
    page.get_by_role("option", name="LoRA, learning_rate 0.005, lora_r 8, seed 42").click()
    press(page, "Stop this run")
    expect(page.locator("#comparison-message")).to_contain_text("The others continue.")
    ended = page.locator("#comparison-runs")
    expect(ended).to_contain_text("6 of 6 runs have ended.", timeout=3 * TRAINING_MS)
    sweep_of(home, lambda found: found.is_reported and not found.is_open)

    path = record.folder_of(home) / f"{sweep.id}-report.html"
    runs = json.loads(path.with_suffix(".json").read_text())["runs"]
    states = [run["state"] for run in runs]
    assert states == ["finished", "finished", "finished", "failed", "finished", "stopped"]
    suites = [[each["name"] for each in run["checks"]] for run in runs]
    assert suites == [["identity", "capabilities"] if each == "finished" else [] for each in states]
    assert "6 runs: 4 finished, 1 failed, 1 stopped." in path.read_text()
    expect(page.locator("#comparison-runs")).to_contain_text("capabilities")
    page.locator("#chosen-trial input").click()
    page.get_by_role("option", name="Best run: ").click()
    press(page, "Use these settings")
    expect(page.locator("#start-message")).to_contain_text("The form holds the settings of LoRA")
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
