"""Test the page in a real browser: training the demo, and a form that answers every edit."""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from core import runs
from core.runs import Home, queue
from tests.builders.browser import (
    BROWSER_TESTS,
    App,
    choose,
    choose_method,
    open_form,
    points_of,
    press,
    set_number,
    state,
    wait_for_points,
    wait_until_finished,
)
from tests.builders.fake_runs import NEVER_END, NewRun

pytestmark = BROWSER_TESTS


@pytest.mark.slow
def test_the_demo_trains_at_the_press_of_one_button_and_survives_a_reload(
    app: App, page: Page, home: Home
) -> None:
    page.goto(app.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits")
    expect(page.locator("#data-line")).to_contain_text("rows")
    press(page, "Start training")
    wait_for_points(page, "loss", 3)
    page.reload()
    expect(state(page)).to_contain_text(re.compile("Training|Evaluating|Saving"))
    wait_for_points(page, "loss", max(3, points_of(page, "loss") + 2))
    wait_until_finished(page)
    (run,) = runs.listing.list_runs(home)
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    assert losses[-1] < losses[0]
    wait_for_points(page, "loss", len(losses))
    expect(page.locator("#answers")).to_contain_text("before")
    expect(page.locator("#what-next")).to_contain_text(str(run.folder / "output"))
    assert (run.folder / "output" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_new_points_leave_a_persons_zoom_alone(
    start_app: Callable[[], App], page: Page, new_run: NewRun
) -> None:
    run = new_run(seed=NEVER_END)
    queue.submit(run.home, run)
    page.goto(start_app().url)
    wait_for_points(page, "loss", 5)
    box = page.locator("#plot-loss .nsewdrag").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    zoomed, seen = range_of(page, "loss"), points_of(page, "loss")
    wait_for_points(page, "loss", seen + 10)
    assert range_of(page, "loss") == zoomed
    assert zoomed[1] < seen


def range_of(page: Page, plot: str) -> list[float]:
    """Return the first and last step that a plot shows."""
    script = (
        "plot => document.querySelector(`#plot-${plot} .js-plotly-plot`)._fullLayout.xaxis.range"
    )
    return list(page.evaluate(script, plot))


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Make a home without runs."""
    return Home.find(str(tmp_path_factory.mktemp("empty")))


@pytest.fixture(scope="module")
def form(empty_home: Home) -> Iterator[App]:
    """Serve one page for all tests that start no training."""
    app = App(empty_home.path)
    yield app
    app.end()


def test_a_wrong_value_is_shown_at_its_control_and_start_is_refused(
    form: App, page: Page, empty_home: Home
) -> None:
    page.goto(form.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits")
    rank = page.locator("#field-lora_r")
    rank.locator("input").fill("-4")
    expect(rank).to_contain_text("-4 is too small; give 1 or more")
    expect(page.locator("#estimate")).to_contain_text("This job cannot run yet")
    expect(page.locator("#start-facts")).to_contain_text("LoRA rank: -4 is too small")
    expect(page.locator("#start")).to_be_disabled()
    assert runs.listing.list_runs(empty_home) == ()
    rank.locator("input").fill("4")
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits")
    expect(page.locator("#start")).to_be_enabled()


def test_the_estimate_moves_with_the_method_and_the_card(form: App, page: Page) -> None:
    open_form(page, form)
    choose(page, "model", "Llama 3.1 8B", "meta-llama/Llama-3.1-8B")
    choose(page, "gpu", "RTX 4090", "rtx-4090")
    expect(page.locator("#estimate .verdict")).to_contain_text(" of 24.0 GiB")
    choose_method(page, "Full", "full")
    expect(page.locator("#estimate .does_not_fit")).to_be_visible()
    press(page, "LoRA instead of full")
    expect(page.locator("#estimate .fits")).to_be_visible()
    press(page, "Undo")
    expect(page.locator("#estimate .does_not_fit")).to_be_visible()
    press(page, "LoRA instead of full")
    expect(page.locator("#undo-fix")).to_be_visible()
    choose_method(page, "QLoRA", "qlora")
    expect(page.locator("#estimate .fits")).to_be_visible()
    expect(page.locator("#undo-fix")).to_be_hidden()


EDGES = """dark => {
  const box = document.querySelector('#field-method input[type=radio]:not(:checked)');
  let behind = box.closest('label');
  for (const each of [box, behind]) each.style.transition = 'none';
  document.body.classList.toggle('dark', dark);
  const fill = element => getComputedStyle(element).backgroundColor;
  while (fill(behind).endsWith(', 0)')) behind = behind.parentElement;
  const channels = text => text.match(/[0-9.]+/g).slice(0, 3).map(each => each / 255);
  const linear = each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
  const light = text => {
    const [red, green, blue] = channels(text).map(linear);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
  };
  const both = [light(getComputedStyle(box).borderTopColor), light(fill(behind))];
  return Math.max(...both) / Math.min(...both);
}"""
"""JavaScript: the contrast of the edge of a box that is not ticked, as WCAG 2.2 defines it."""


@pytest.mark.parametrize("is_dark", [False, True])
def test_a_box_to_tick_can_be_seen(form: App, page: Page, is_dark: bool) -> None:
    open_form(page, form)
    assert page.evaluate(EDGES, is_dark) >= 3


def test_the_boxes_of_places_are_drawn_whole(form: App, page: Page) -> None:
    open_form(page, form)
    script = "id => document.querySelector(id).getBoundingClientRect().top"
    assert page.evaluate(script, "#where label") >= page.evaluate(script, "#where") + 1


@pytest.mark.slow
def test_a_picture_that_is_open_follows_the_form(form: App, page: Page) -> None:
    open_form(page, form)
    page.get_by_text("Memory during one step").click()
    said = page.locator("#timeline .notice")
    expect(said).to_contain_text("Allocated memory during one step")
    first = said.inner_text()
    set_number(page, "max_length", 32)
    expect(said).not_to_have_text(first)


@pytest.mark.slow
def test_the_tab_key_closes_a_menu(form: App, page: Page) -> None:
    open_form(page, form)
    page.locator("#field-gpu input").click()
    expect(page.get_by_role("option").first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#field-profile input:focus")).to_have_count(1)
    expect(page.get_by_role("option")).to_have_count(0)


@pytest.mark.slow
def test_the_chosen_colours_survive_a_reload(form: App, page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(form.url)
    for num_dark in (1, 0):
        press(page, "Toggle dark mode")
        expect(page.locator("body.dark")).to_have_count(num_dark)
        page.reload()
        expect(page.locator("#estimate .verdict")).to_contain_text("Fits")
        expect(page.locator("body.dark")).to_have_count(num_dark)


def test_the_estimate_and_the_start_stay_in_view(form: App, page: Page) -> None:
    open_form(page, form)
    page.get_by_text("Job file", exact=True).click()
    page.get_by_text("Advanced", exact=True).click()
    page.get_by_text("Sample prompts").scroll_into_view_if_needed()
    expect(page.locator("#estimate .verdict")).to_be_in_viewport()
    expect(page.locator("#start")).to_be_in_viewport()
    page.locator("#load-job-file").scroll_into_view_if_needed()
    expect(page.locator("#load-job-file")).to_be_in_viewport(ratio=1)


@pytest.mark.slow
def test_a_profile_shows_its_reasons_and_keeps_values_set_by_hand(form: App, page: Page) -> None:
    open_form(page, form)
    choose(page, "model", "Llama 3.1 8B", "meta-llama/Llama-3.1-8B")
    choose(page, "gpu", "RTX 4090", "rtx-4090")
    choose_method(page, "QLoRA", "qlora")
    choices = page.locator("#plan")
    choices.get_by_text("Chosen settings and why").click()
    of_batch = choices.locator("li", has_text="per_device_train_batch_size")
    expect(of_batch).to_contain_text(re.compile(r"\d+ \w+ .*\d"))
    set_number(page, "per_device_train_batch_size", 3)
    expect(choices).to_contain_text("Kept as you set them: per_device_train_batch_size")
    expect(of_batch).to_have_count(0)
    choose(page, "gpu", "A100 SXM 80", "a100-80gb")
    expect(page.locator("#estimate .verdict")).to_contain_text(" of 80.0 GiB")
    expect(page.locator("#field-per_device_train_batch_size input")).to_have_value("3")
    page.get_by_label("Smallest memory").check()
    expect(of_batch).to_have_count(1)
    expect(choices).not_to_contain_text("Kept as you set them")


@pytest.mark.slow
def test_the_exact_check_shows_a_trace_with_the_estimate(form: App, page: Page) -> None:
    open_form(page, form)
    expect(page.locator("#lengths")).to_contain_text("none cut")
    press(page, "Check exactly")
    table = page.locator("#trace table")
    expect(table).to_contain_text("estimated GiB", timeout=60_000)
    both = table.locator("tr", has_text="Backward").locator("td")
    expect(both).to_contain_text([re.compile(r"^\d+\.\d{3}$"), re.compile(r"^\d+\.\d{3}$"), "%"])
    set_number(page, "lora_r", 32)
    expect(table).to_have_count(0)
