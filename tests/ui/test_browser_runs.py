"""Test several runs in a real browser: queue, resume, failures and the list of runs."""

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from core import runs
from core.models import DEMO_DIR
from core.resolve import resolve
from core.runs import Home, Run, creation, edits
from tests.builders.browser import (
    BROWSER_TESTS,
    TRAINING_MS,
    App,
    open_form,
    press,
    set_number,
    state,
    unfold,
    wait_for_flag,
    wait_for_points,
    wait_until_finished,
)
from tests.builders.fake_runs import DIVERGED, bare_run, ended, start
from tests.builders.paths import FAKE_PROGRAM

pytestmark = BROWSER_TESTS


@pytest.mark.slow
def test_the_queue_survives_the_app_and_a_stopped_run_is_resumed(
    start_app: Callable[[], App], page: Page, home: Home
) -> None:
    before = start_app()
    open_form(page, before)
    set_number(page, "num_train_epochs", 4)
    press(page, "Start training")
    expect(page.locator("#active-run")).to_be_visible()
    page.get_by_role("tab", name="Train").click()
    set_number(page, "num_train_epochs", 1)
    press(page, "Add to queue")
    expect(state(page)).to_contain_text("Waiting for its turn")
    second, first = runs.listing.list_runs(home)
    expect(page.locator(f"[data-run='{first.id}'][aria-pressed=false]")).to_be_visible()

    before.end(signal.SIGKILL)
    page.goto(start_app().url)
    pick(page, first)
    wait_for_points(page, "loss", 3)
    press(page, "Stop and save")
    expect(state(page)).to_contain_text("Stopped at step", timeout=TRAINING_MS)
    stopped = runs.read(home, first.id)
    assert stopped.state == "stopped"
    assert first.has_checkpoint
    pick(page, second)
    wait_until_finished(page)

    pick(page, first)
    press(page, "Resume", exact=True)
    wait_until_finished(page)
    steps = [row["step"] for row in first.metrics() if "loss" in row]
    assert steps == list(range(1, stopped.max_steps + 1))


@pytest.mark.slow
def test_a_finished_run_continues_with_preferences(app: App, page: Page, home: Home) -> None:
    open_form(page, app)
    set_number(page, "num_train_epochs", 1)
    press(page, "Start training")
    wait_until_finished(page)
    press(page, "Next stage: DPO")
    expect(page.locator("#field-stage input")).to_have_value(re.compile("DPO"))
    expect(page.locator("#data-line")).to_contain_text("prompt + chosen + rejected")
    expect(page.locator("#field-beta")).to_be_visible()
    wait_for_flag(page, "stage", "dpo")
    set_number(page, "num_train_epochs", 1)
    press(page, "Start training")
    expect(state(page)).not_to_contain_text("Finished")
    wait_until_finished(page)
    second, first = runs.listing.list_runs(home)
    assert (second.job.stage, second.job.adapter) == ("dpo", str(first.folder / "output"))
    expect(page.locator("#answers")).to_contain_text("before")
    page.get_by_text("More plots").click()
    wait_for_points(page, "rewards", 2)
    expect(page.locator("#plot-kl")).to_be_hidden()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Make a home with a run that has diverged, and two finished ones."""
    home = Home.find(str(tmp_path_factory.mktemp("trained")))
    wild = {"learning_rate": 10, "method": "full", "num_train_epochs": 1, "seed": DIVERGED}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(creation, "PROGRAM", FAKE_PROGRAM)
        for fields in (wild, {"learning_rate": 1e-3}, {"learning_rate": 3e-3}):
            resolved = resolve({"model": "demo", "dataset": "demo", **fields})
            ended(home, start(home, runs.create(home, resolved, resolved.forecast())))
    assert [run.state for run in runs.listing.list_runs(home)] == ["finished", "finished", "failed"]
    return home


@pytest.fixture(scope="module")
def over_trained(trained: Home) -> Iterator[App]:
    """Serve the page of these runs."""
    app = App(trained.path)
    yield app
    app.end()


def test_a_run_that_diverges_says_so_and_offers_a_slower_one(
    over_trained: App, page: Page, trained: Home
) -> None:
    page.goto(over_trained.url)
    page.get_by_role("tab", name="Runs").click()
    pick(page, runs.listing.list_runs(trained)[-1])
    expect(state(page)).to_contain_text("The training has diverged")
    expect(page.locator("#run-header .advice")).to_contain_text("Learning rate 2")
    press(page, "Retry: Learning rate 2")
    expect(page.locator("#field-learning_rate input")).to_have_value("2")
    expect(page.locator("#field-num_train_epochs input")).to_have_value("1")
    expect(page.get_by_label("Full", exact=True)).to_be_checked()


@pytest.mark.slow
def test_two_runs_are_compared_and_one_is_renamed(
    over_trained: App, page: Page, trained: Home
) -> None:
    fast, slow, _ = runs.listing.list_runs(trained)
    page.goto(over_trained.url)
    page.get_by_role("tab", name="Runs").click()
    for run in (fast, slow):
        page.locator(f"[data-compare='{run.id}']").check()
    lines = page.locator("#differences tr")
    expect(lines.filter(has_text="learning_rate").locator("td")).to_have_text(["0.003", "0.001"])
    expect(lines.filter(has_text="num_train_epochs")).to_have_count(0)
    wait_for_points(page, "comparison", 3)

    pick(page, slow)
    unfold(page, "Name, tags and notes")
    page.get_by_label("Name", exact=True).fill("The patient one")
    press(page, "Save")
    expect(page.locator(f"[data-run='{slow.id}']")).to_contain_text("The patient one")
    expect(page.locator("#differences th").nth(1)).to_have_text("The patient one")
    page.get_by_placeholder("Search:").fill("patient")
    expect(page.locator("[data-run]")).to_have_count(1)


@pytest.mark.slow
def test_notes_stay_with_their_run_and_pasted_text_is_searched_for(
    over_trained: App, page: Page, trained: Home
) -> None:
    newest, older, _ = runs.listing.list_runs(trained)
    edits.annotate(trained, newest.id, title="Well known", tags=[], notes="Of the newest.")
    edits.annotate(trained, older.id, title="Older", tags=[], notes="")
    page.goto(over_trained.url)
    page.get_by_role("tab", name="Runs").click()
    unfold(page, "Name, tags and notes")
    name, notes, search = (
        page.get_by_label(label, exact=True) for label in ("Name", "Notes", "Search runs")
    )
    pick(page, older)
    expect(name).to_have_value("Older")
    notes.fill("Of the older one, not saved.")
    pick(page, newest)
    expect(name).to_have_value("Well known")
    expect(notes).to_have_value("Of the newest.")

    search.focus()
    page.keyboard.insert_text("well known")  # as a paste: no key is pressed
    expect(page.locator("[data-run]")).to_have_count(1)
    search.press("Control+a")
    search.press("Backspace")
    expect(page.locator("[data-run]")).to_have_count(3)
    edits.annotate(trained, newest.id, title="", tags=[], notes="")


@pytest.mark.slow
def test_a_deleted_run_comes_back(over_trained: App, page: Page, trained: Home) -> None:
    newest, older, oldest = runs.listing.list_runs(trained)
    page.goto(over_trained.url)
    page.get_by_role("tab", name="Runs").click()
    pick(page, older)
    press(page, "Delete")
    expect(page.locator("[data-run]")).to_have_count(2)
    expect(page.locator(f"[data-run='{newest.id}'][aria-pressed=true]")).to_be_visible()
    assert runs.listing.list_runs(trained) == (newest, oldest)
    press(page, "Restore deleted run")
    expect(page.locator(f"[data-run='{older.id}'][aria-pressed=true]")).to_be_visible()
    wait_until_finished(page)
    assert [run.id for run in runs.listing.list_runs(trained)] == [newest.id, older.id, oldest.id]


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_fits_a_phone(
    over_trained: App, page: Page, colours: Literal["light", "dark"]
) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=colours)
    page.goto(over_trained.url)
    expect(page.locator("body.dark")).to_have_count(int(colours == "dark"))
    expect(page.locator("#lengths")).to_contain_text("none cut")
    assert too_wide(page) <= 0
    page.get_by_role("tab", name="Runs").click()
    wait_for_points(page, "loss", 3)
    expect(page.locator("#answers")).to_be_visible()
    assert too_wide(page) <= 0


def test_an_error_is_in_view_wherever_its_button_is(app: App, page: Page, home: Home) -> None:
    folder = bare_run(home, "made", model=str(DEMO_DIR), dataset="demo", method="full")
    shutil.copytree(DEMO_DIR, folder / "output")
    page.goto(app.url)
    page.get_by_role("tab", name="Runs").click()
    unfold(page, "Publish on the Hub")
    page.get_by_label("Repository").fill("a b")
    page.get_by_role("button", name="Publish", exact=True).click()
    message = page.locator("#page-message [role=alert]")
    expect(message).to_contain_text("'a b' is no repository")
    expect(message).to_be_in_viewport()
    page.get_by_label("Repository").click()
    expect(message).to_have_count(0)


def too_wide(page: Page) -> int:
    """Return by how many pixels the page is wider than the screen."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def pick(page: Page, run: Run) -> None:
    """Select a run in the list, and wait until it is shown."""
    page.locator(f"[data-run='{run.id}']").click()
    expect(page.locator(f"[data-run='{run.id}'][aria-pressed=true]")).to_be_visible()
