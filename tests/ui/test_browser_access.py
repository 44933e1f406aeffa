"""The page for everyone: axe-core finds nothing serious, in both themes, all tabs and states."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from core.runs import Home
from tests.builders.accessibility import COLOURS, Colours, serious_faults
from tests.builders.browser import BROWSER_TESTS, App, unfold
from tests.builders.fake_runs import bare_run, write_metrics

pytestmark = [*BROWSER_TESTS, pytest.mark.slow]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Return the page over a home with two finished runs and one that cannot be read."""
    home = Home.find(str(tmp_path_factory.mktemp("home")))
    for name in ("older", "newer"):
        write_metrics(bare_run(home, name), range(1, 9), memory_allocated_bytes=2**30)
    (bare_run(home, "torn") / "job.json").write_text("{")
    app = App(home.path)
    yield app
    app.end()


@pytest.mark.parametrize("colours", COLOURS)
def test_axe_finds_nothing_serious(app: App, page: Page, colours: Colours) -> None:
    page.emulate_media(color_scheme=colours)
    page.goto(app.url)
    expect(page.locator("#lengths")).to_contain_text("none cut")
    assert serious_faults(page) == []
    for heading in ("Preview rows", "Memory during one step", "Command line", "Advanced"):
        unfold(page, heading)
    expect(page.locator("#row")).to_contain_text("Row 1 of")
    assert serious_faults(page) == []
    page.locator("#field-lora_r input").fill("-3")
    expect(page.locator("#start")).to_be_disabled()
    expect(page.locator("#field-lora_r input")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".for-readers")).to_contain_text("-3 is too small")
    assert serious_faults(page) == []
    page.get_by_role("tab", name="Runs").click()
    expect(page.locator("#unreadable")).to_contain_text("torn")
    for heading in ("More plots", "Name, tags and notes", "Files ▼", "Log ▼"):
        page.get_by_role("button", name=heading).click()
    for name in ("older", "newer"):
        page.locator(f"[data-compare={name}]").check()
    expect(page.locator("#differences")).to_contain_text("newer")
    assert serious_faults(page) == []


def test_the_form_outlives_a_reload(app: App, page: Page) -> None:
    page.goto(app.url)
    expect(page.locator("#lengths")).to_contain_text("none cut")
    page.locator("#field-lora_r input").fill("24")
    unfold(page, "Command line")
    expect(page.locator("#command")).to_contain_text("--lora-r 24")
    page.reload()
    expect(page.locator("#field-lora_r input")).to_have_value("24")
