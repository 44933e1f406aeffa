"""Test the page with a real Slurm of one node: choose it, train the demo there, stop and resume."""

import os
import re
import tempfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from core import runs
from core.runs import Home
from tests.builders.browser import (
    BROWSER_TESTS,
    TRAINING_MS,
    App,
    open_form,
    press,
    set_number,
    state,
    wait_for_points,
    wait_until_finished,
)
from tests.builders.slurm import running_slurm, why_not_here

pytestmark = [
    *BROWSER_TESTS,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no Slurm: {why_not_here()}"),
]
SHOTS = os.environ.get("TAILOR_SHOTS", "")
"""Folder for pictures of the page, "" for none."""


def take_picture(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def test_demo_trains_on_a_cluster_that_is_chosen_on_the_page(
    home: Home, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="slurm") as name, running_slurm(Path(name)) as slurm:
        for variable, value in slurm.environment.items():
            monkeypatch.setenv(variable, value)
        app = App(home.path)
        try:
            _train(page, app, home)
        finally:
            app.end()


def _train(page: Page, app: App, home: Home) -> None:
    open_form(page, app)
    page.get_by_text("Advanced").click()
    set_number(page, "max_steps", 40)
    page.get_by_label("My cluster (Slurm)").check()
    page.get_by_label("Partition").click()
    page.get_by_role("option", name="urgent").click()
    page.get_by_label("Time limit").fill("20:00")
    wanted = "--on slurm --partition urgent --time 20:00"
    expect(page.locator("#command")).to_contain_text(wanted)
    take_picture(page, "where")
    press(page, "Start training")
    expect(state(page)).to_contain_text("Slurm job", timeout=TRAINING_MS)
    take_picture(page, "waiting")
    wait_for_points(page, "loss", 3)
    take_picture(page, "running")
    press(page, "Stop and save")
    expect(state(page)).to_contain_text("Stopped at step", timeout=TRAINING_MS)
    _resume_on_two_devices(page)
    wait_until_finished(page)
    (run,) = runs.listing.list_runs(home)
    assert (run.placement.partition, run.job.num_devices) == ("urgent", 2)
    assert run.status.resumed_at


def _resume_on_two_devices(page: Page) -> None:
    """Resume where the run has trained, which the boxes hold."""
    press(page, "Resume on other devices")
    expect(page.locator("#resume-partition input")).to_have_value("urgent")
    expect(page.locator("#resume-time-limit textarea, #resume-time-limit input")).to_have_value(
        "20:00"
    )
    page.locator("#resume-devices input").fill("2")
    take_picture(page, "resume")
    press(page, "Resume with these")
    expect(state(page)).to_contain_text(re.compile("Slurm job|Finished"), timeout=TRAINING_MS)
