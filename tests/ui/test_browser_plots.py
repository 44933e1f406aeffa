"""Plots in a real browser: each is seen, with its lines, on every way that leads to it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from core.after_training.compare.report import html_of, summary_of_runs
from core.runs import Home, read
from tests.builders.browser import BROWSER_TESTS, App
from tests.builders.fake_runs import bare_run, write_metrics

pytestmark = BROWSER_TESTS

NUM_STEPS = 30
MEMORY = {
    "memory_allocated_bytes": 3 * 2**30,
    "memory_reserved_bytes": 4 * 2**30,
    "device_used_bytes": 5 * 2**30,
    "rank_memory_min_bytes": 4 * 2**30,
    "rank_memory_max_bytes": 5 * 2**30,
}
LINES_SEEN = """plot => {
  const drawn = document.querySelector(`#plot-${plot} .js-plotly-plot .main-svg`);
  if (!drawn || drawn.getBoundingClientRect().height < 200) return 0;
  return document.querySelectorAll(`#plot-${plot} .scatterlayer path.js-line`).length;
}"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Return the page over a home with two finished runs."""
    home = Home.find(str(tmp_path_factory.mktemp("home")))
    for name in ("older", "newer"):
        write_metrics(bare_run(home, name), range(1, NUM_STEPS), **MEMORY, learning_rate=0.1)
    app = App(home.path)
    yield app
    app.end()


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((1400, 900), id="desktop", marks=pytest.mark.slow),
        pytest.param((390, 844), id="phone"),
    ],
)
def test_every_plot_is_seen_on_every_way_to_it(app: App, page: Page, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(app.url)
    for _reload in range(2):
        expect(page.locator("#lengths")).to_contain_text("none cut")
        page.get_by_role("tab", name="Runs").click()
        wait_for_lines(page, loss=2, memory=5)
        page.reload()
    page.get_by_role("tab", name="Runs").click()
    page.locator("[data-run=older]").click()
    expect(page.locator("[data-run=older][aria-pressed=true]")).to_be_visible()
    wait_for_lines(page, loss=2, memory=5)
    page.get_by_text("More plots").click()
    wait_for_lines(page, learning_rate=1)
    for name in ("older", "newer"):
        page.locator(f"[data-compare={name}]").check()
    wait_for_lines(page, comparison=2, loss=2, memory=5)
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("tab", name="Runs").click()
    wait_for_lines(page, comparison=2, loss=2, memory=5, learning_rate=1)


def wait_for_lines(page: Page, **num_lines: int) -> None:
    """Wait until these plots show so many lines, and are 200 pixels high or more."""
    for plot, number in num_lines.items():
        page.wait_for_function(f"plot => ({LINES_SEEN})(plot) === {number}", arg=plot)


GAP_OF_LEGEND = """() => {
  const drawn = document.querySelector("#plot-memory .js-plotly-plot");
  const [legend, axis] = [".legend", ".xaxislayer-above"].map(
    part => drawn.querySelector(part).getBoundingClientRect());
  return legend.top - axis.bottom;
}"""
"""Script: pixels between the numbers of an axis and the legend below them."""
MS_TO_DRAW = 2000
"""Far more than it takes to draw a plot in a window of another width."""


def test_a_legend_covers_no_plot_after_the_window_has_changed(app: App, page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(app.url)
    page.get_by_role("tab", name="Runs").click()
    wait_for_lines(page, memory=5)
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(MS_TO_DRAW)
        assert page.evaluate(GAP_OF_LEGEND) >= 0


PLOTS_OF_REPORT = """[...document.querySelectorAll("svg")]
  .filter(plot => plot.getClientRects().length)
  .map(plot => ({
    name: plot.getAttribute("class"),
    fits: plot.getBoundingClientRect().right <= innerWidth,
    letters: Math.round(12 * plot.getBoundingClientRect().width / plot.viewBox.baseVal.width),
  }))"""
"""Script: name, place and height of the letters of each plot that is seen."""


def test_plots_of_a_report_fit_on_a_phone(home: Home, page: Page) -> None:
    for name in ("older", "newer"):
        write_metrics(bare_run(home, name), range(1, NUM_STEPS), eval_loss=0.5)
    report = home.path / "report.html"
    summary = summary_of_runs([read(home, name) for name in ("older", "newer")])
    report.write_text(html_of(summary), encoding="utf-8")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(report.as_uri())
    found = page.evaluate(PLOTS_OF_REPORT)
    assert found == [{"name": "narrow", "fits": True, "letters": 12}] * 2
