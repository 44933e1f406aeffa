"""The page for everyone: axe-core finds nothing serious in any state of a run or of the form."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from core import runs
from core.resolve import resolve
from core.runs import Home, Run, creation, launch, queue
from tests.builders.accessibility import COLOURS, SIZES, Colours, serious_faults
from tests.builders.browser import BROWSER_TESTS, App, state
from tests.builders.chat_runs import add_checkpoint, finish
from tests.builders.fake_runs import CRASH_AT_STEP_3, NEVER_END, ended, started, write_metrics
from tests.builders.paths import DATA, FAKE_PROGRAM

pytestmark = [*BROWSER_TESTS, pytest.mark.slow]
FOLDED = ("More plots", "Checkpoints", "Name, tags and notes", "Files", "Log", "Publish on the Hub",
          "Make a suite for this run")  # fmt: skip
PANELS = (
    "Columns",
    "Compare methods and settings",
    "What fits where",
    "Which models for my card",
    "Job file",
)
STATES = {
    "finished": "Finished",
    "failed": "ran out of memory",
    "running": "Training",
    "queued": "Waiting for its turn",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Make a home with a run in every state, and end them all."""
    place = Home.find(str(tmp_path_factory.mktemp("home")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(creation, "PROGRAM", FAKE_PROGRAM)
        yield place
    for run in runs.listing.list_runs(place):
        launch.kill(run)


@pytest.fixture(scope="module")
def by_state(home: Home) -> dict[str, Run]:
    """Return a run in each state."""

    def new(seed: int = 1) -> Run:
        resolved = resolve({"seed": seed})
        return runs.create(home, resolved, resolved.estimate().to_json())

    finished = finish(new())
    write_metrics(finished.folder, range(1, 9), memory_allocated_bytes=2**30, eval_loss=1)
    add_checkpoint(finished, 4)
    failed = started(home, new(CRASH_AT_STEP_3))
    ended(home, failed)
    running = started(home, new(NEVER_END))
    queued = queue.submit(home, new())
    return {"finished": finished, "failed": failed, "running": running, "queued": queued}


@pytest.fixture(scope="module")
def app(home: Home, by_state: dict[str, Run]) -> Iterator[App]:
    made = App(home.path)
    yield made
    made.end()


@pytest.fixture(params=COLOURS)
def colours(request: pytest.FixtureRequest) -> Colours:
    return request.param


@pytest.fixture(params=SIZES)
def seen(request: pytest.FixtureRequest, page: Page, colours: Colours) -> Page:
    """Return a tab of one size in one theme."""
    width, height = SIZES[request.param]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=colours)
    return page


def open_folded(page: Page, headings: tuple[str, ...]) -> None:
    """Open those of these folded sections that can be seen and are closed."""
    for heading in headings:
        for section in page.get_by_role("button", name=heading).all():
            if section.is_visible() and section.get_attribute("aria-expanded") != "true":
                section.click()
    page.wait_for_timeout(300)


@pytest.mark.parametrize("wanted", STATES)
def test_a_run_of_any_state(app: App, seen: Page, by_state: dict[str, Run], wanted: str) -> None:
    seen.goto(app.url)
    seen.get_by_role("tab", name="Runs").click()
    seen.locator(f"[data-run='{by_state[wanted].id}']").click()
    expect(state(seen)).to_contain_text(STATES[wanted])
    open_folded(seen, FOLDED)
    assert serious_faults(seen) == []


def open_try(page: Page) -> None:
    page.get_by_role("tab", name="Try").click()
    page.get_by_text("Settings of answers").click()


def upload_table(page: Page) -> None:
    page.locator("#upload input[type=file]").set_input_files(
        {"name": "rows.csv", "mimeType": "text/csv", "buffer": b"prompt,completion\na,b\n"}
    )
    expect(page.locator("#data-line")).to_contain_text("1 row")


def upload(name: str) -> Callable[[Page], None]:
    def act(page: Page) -> None:
        page.locator("#upload input[type=file]").set_input_files(Path(DATA / name))
        expect(page.locator("#data-line")).to_contain_text("line")

    return act


def open_panels(page: Page) -> None:
    open_folded(page, PANELS)
    expect(page.locator("#card-models")).not_to_contain_text("Computing", timeout=60_000)


def load_wrong_job(page: Page) -> None:
    open_folded(page, ("Job file",))
    page.locator("#job-file .cm-content").fill('{"stage": "sft", "teleport": 1}')
    page.get_by_role("button", name="Load into the form").click()
    expect(page.locator("#job-file-message")).to_contain_text("teleport")


def choose_impossible(page: Page) -> None:
    page.locator("#field-max_length input").fill("999999")
    expect(page.locator("#start-facts")).to_contain_text("Cannot start")


DEEDS: dict[str, Callable[[Page], None]] = {
    "try": open_try,
    "table": upload_table,
    "truncated": upload("truncated.jsonl"),
    "two columns": upload("two_columns.jsonl"),
    "panels": open_panels,
    "wrong job file": load_wrong_job,
    "impossible": choose_impossible,
}


@pytest.mark.parametrize("deed", DEEDS)
def test_a_form_in_any_state(app: App, seen: Page, deed: str) -> None:
    seen.goto(app.url)
    expect(state(seen)).to_be_visible()  # a page with a running run opens there
    seen.get_by_role("tab", name="Train").click()
    expect(seen.locator("#lengths")).to_contain_text("none cut")
    DEEDS[deed](seen)
    assert serious_faults(seen) == []
