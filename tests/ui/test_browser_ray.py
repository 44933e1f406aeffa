"""Test the page with a real Ray: name it, train the demo there, and lose it."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from core import runs
from core.runs import Home, Run
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
from tests.builders.ports import free_port
from tests.builders.ray import Ray, running_ray, why_not_here

pytestmark = [
    *BROWSER_TESTS,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no Ray: {why_not_here()}"),
]
SHOTS = os.environ.get("TAILOR_SHOTS", "")
"""Folder for pictures of the page, "" for none."""
WIDTHS = (1280, 390)
LEAST_WIDTH, LEAST_HEIGHT = 600, 150
"""Pixels of a plot that can be read."""


def take_pictures(page: Page, name: str) -> None:
    if not SHOTS:
        return
    before = page.viewport_size
    for scheme in ("light", "dark"):
        page.evaluate("is => document.body.classList.toggle('dark', is)", scheme == "dark")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(700)
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}-{scheme}.png", full_page=True)
    page.evaluate("document.body.classList.remove('dark')")
    page.set_viewport_size(before)


@contextmanager
def ray_and_page(
    home: Home, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> Iterator[tuple[Ray, App]]:
    """Start a Ray in a folder whose path is short enough for its sockets, and a page beside it."""
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        running_ray(Path(folder), num_workers) as ray,
    ):
        monkeypatch.setenv("RAY_AUTH_TOKEN", ray.token)
        app = App(home.path)
        try:
            yield ray, app
        finally:
            app.end()


def choose_ray(page: Page, address: str) -> None:
    """Choose Ray as the place of the next run, and wait until the app knows its address."""
    page.get_by_label("My cluster (Ray)").check()
    page.get_by_label("Address of the dashboard").fill(address)
    page.get_by_label("Address of the dashboard").blur()
    expect(page.locator("#command")).to_contain_text(f"--on ray --address {address}")


def start_on(page: Page, app: App, address: str, num_steps: int) -> None:
    open_form(page, app)
    page.get_by_text("Advanced").click()
    set_number(page, "max_steps", num_steps)
    choose_ray(page, address)
    take_pictures(page, "where")
    press(page, "Start training")


def said_at_the_start(page: Page) -> str:
    """Return what the page says of a start that was refused."""
    message = page.locator("#start-message")
    expect(message).to_contain_text("Not started.")
    return message.inner_text()


def only_run(home: Home) -> Run:
    (run,) = runs.listing.list_runs(home)
    return run


def test_demo_trains_on_a_ray_that_is_named_on_the_page(
    home: Home, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_and_page(home, monkeypatch, num_workers=1) as (ray, app):
        start_on(page, app, ray.address, 40)
        expect(state(page)).to_contain_text("Ray job", timeout=TRAINING_MS)
        wait_for_points(page, "loss", 3)
        box = page.locator("#plot-loss .js-plotly-plot").bounding_box()
        lines = page.locator("#plot-loss .scatterlayer .js-line").count()
        take_pictures(page, "running")
        press(page, "Stop and save")
        expect(state(page)).to_contain_text("Stopped at step", timeout=TRAINING_MS)
        take_pictures(page, "stopped")
        press(page, "Resume", exact=True)
        expect(state(page)).to_contain_text(re.compile("Ray job|Finished"), timeout=TRAINING_MS)
        wait_until_finished(page)
        take_pictures(page, "finished")
    assert box
    assert (box["width"] > LEAST_WIDTH, box["height"] > LEAST_HEIGHT) == (True, True)
    assert lines >= 1
    run = only_run(home)
    assert run.submission
    assert run.submission.placement.engine == "ray"
    assert run.status.resumed_at


def test_address_that_is_not_of_ray_is_refused_in_words(app: App, page: Page, home: Home) -> None:
    start_on(page, app, f"http://127.0.0.1:{free_port()}", 40)
    assert "Connection refused; start it, or give the address" in said_at_the_start(page)
    take_pictures(page, "refused")
    choose_ray(page, app.url.rstrip("/"))
    press(page, "Start training")
    expect(page.locator("#start-message")).to_contain_text("is no dashboard of Ray")
    assert runs.listing.list_runs(home) == ()
    page.get_by_label("This machine").check()
    press(page, "Start training")
    wait_until_finished(page)


def test_run_waits_for_a_worker_and_outlives_the_head(
    home: Home, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_and_page(home, monkeypatch, num_workers=0) as (ray, app):
        start_on(page, app, ray.address, 20_000)
        expect(page.locator("#start-message")).to_contain_text("Asking the cluster")
        expect(state(page)).to_contain_text("it waits for free CPUs or GPUs", timeout=TRAINING_MS)
        take_pictures(page, "no-worker")
        ray.add_worker()
        wait_for_points(page, "loss", 3)
        ray.end_head()
        expect(state(page)).to_contain_text("Ray does not answer", timeout=TRAINING_MS)
        take_pictures(page, "no-head")
        press(page, "Stop and save")  # the program finds the file, without Ray
        expect(state(page)).to_contain_text("Stopped at step", timeout=TRAINING_MS)
        press(page, "Resume", exact=True)
        message = page.locator("#run-message")
        expect(message).to_contain_text("Ray does not answer", timeout=TRAINING_MS)
        take_pictures(page, "no-resume")
        page.get_by_role("tab", name="Train").click()
        press(page, "Start training")
        expect(page.locator("#start-message")).to_contain_text("Not started.")
        take_pictures(page, "no-start")
    assert only_run(home).state == "stopped"
