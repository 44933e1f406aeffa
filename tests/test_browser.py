"""The README's story in a real browser: the demo trains, is watched, outlives the page and the app, and is stopped."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from core import runs
from core.runs import Home

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.training,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("TAILOR_REQUIRE_BROWSER"),
        reason="needs chromium (apt install chromium)",
    ),
]
TRAINING_MS = 240_000


class App:
    """A real `python app.py` on a port of its own."""

    def __init__(self, home: Path, port: int):
        self.url = f"http://127.0.0.1:{port}/"
        command = [sys.executable, "app.py", "--no-browser", "--port", str(port), "--home", str(home)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        self.started = time.monotonic()
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() - self.started < 60, "the page never came up"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def end(self, how: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(how)
        self.process.wait(20)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def app(home: Home) -> Iterator[App]:
    running = App(home.path, free_port())
    yield running
    running.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    yield tab
    tab.close()
    assert complaints == []


def points_of(page: Page, plot: str) -> int:
    """How many points the first line of a plot has."""
    script = "plot => document.querySelector(`#plot-${plot} .js-plotly-plot`)?.data?.[0]?.x?.length ?? 0"
    return int(page.evaluate(script, plot))


def wait_for_points(page: Page, plot: str, num_points: int) -> None:
    deadline = time.monotonic() + TRAINING_MS / 1000
    while points_of(page, plot) < num_points:
        assert time.monotonic() < deadline, f"{plot} has {points_of(page, plot)} points"
        page.wait_for_timeout(200)


def test_the_demo_trains_at_the_press_of_one_button_and_survives_a_reload(app: App, page: Page, home: Home) -> None:
    page.goto(app.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits", timeout=20_000)
    expect(page.locator("#data-line")).to_contain_text("rows")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#run-header .state")).to_be_visible(timeout=20_000)
    wait_for_points(page, "loss", 3)
    page.reload()
    expect(page.locator("#run-header .state")).to_contain_text(re.compile("Training|Evaluating|Saving"), timeout=20_000)
    seen = points_of(page, "loss")
    wait_for_points(page, "loss", max(3, seen + 2))
    expect(page.locator("#run-header .state")).to_contain_text("Finished", timeout=TRAINING_MS)
    (run,) = runs.list_runs(home)
    losses = [row["loss"] for row in runs.metrics(run.folder) if "loss" in row]
    assert losses[-1] < losses[0]
    wait_for_points(page, "loss", len(losses))
    expect(page.locator("#answers")).to_contain_text("before")
    expect(page.locator("#what-next")).to_contain_text(str(run.folder / "output"))
    assert (run.folder / "output" / "adapter_model.safetensors").is_file()


def test_a_run_outlives_the_app_and_is_stopped_from_the_next_one(page: Page, home: Home) -> None:
    first = App(home.path, free_port())
    page.goto(first.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits", timeout=20_000)
    page.locator("#field-num_train_epochs input").fill("500")
    page.locator("#field-num_train_epochs input").blur()
    page.get_by_role("button", name="Start training").click()
    wait_for_points(page, "loss", 3)
    first.end(signal.SIGKILL)
    second = App(home.path, free_port())
    page.goto(second.url)
    wait_for_points(page, "loss", points_of(page, "loss") + 2)
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator("#run-header .state")).to_contain_text("Stopped at step", timeout=60_000)
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    (run,) = runs.list_runs(home)
    assert run.state == "stopped" and runs.has_checkpoint(run.folder)
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#run-header .state")).to_contain_text("Training, step", timeout=60_000)
    assert runs.read(home, run.id).step >= run.step
    second.end()


def test_new_points_leave_a_persons_zoom_alone(app: App, page: Page) -> None:
    page.goto(app.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits", timeout=20_000)
    page.locator("#field-num_train_epochs input").fill("500")
    page.get_by_role("button", name="Start training").click()
    wait_for_points(page, "loss", 5)
    box = page.locator("#plot-loss .nsewdrag").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    zoomed, seen = range_of(page, "loss"), points_of(page, "loss")
    wait_for_points(page, "loss", seen + 10)
    assert range_of(page, "loss") == zoomed and zoomed[1] < seen


def range_of(page: Page, plot: str) -> list[float]:
    """What part of the steps a plot shows."""
    script = "plot => document.querySelector(`#plot-${plot} .js-plotly-plot`)._fullLayout.xaxis.range"
    return list(page.evaluate(script, plot))


def test_a_wrong_value_is_told_at_its_control_and_start_is_refused(app: App, page: Page, home: Home) -> None:
    page.goto(app.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits", timeout=20_000)
    rank = page.locator("#field-lora_r")
    rank.locator("input").fill("-4")
    expect(rank).to_contain_text("-4 is too small; give 1 or more", timeout=10_000)
    expect(page.locator("#estimate")).to_contain_text("This job cannot run yet")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#start-message")).to_contain_text("Not started", timeout=10_000)
    assert runs.list_runs(home) == ()
    rank.locator("input").fill("4")
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits", timeout=10_000)


def test_bad_lines_are_named_dropped_and_the_rest_is_trained_on(
    app: App, page: Page, home: Home, tmp_path: Path
) -> None:
    rows = (ROOT / "presets" / "demo" / "data.jsonl").read_text().splitlines()[:40]
    rows[6], rows[16], rows[26] = '{"messages": [', '{"messages": []}', '{"messages": [{"role": "wizard"}]}'
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(rows) + "\n")
    page.goto(app.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits", timeout=20_000)
    page.locator("#upload input[type=file]").set_input_files(file)
    line = page.locator("#data-line")
    expect(line).to_contain_text("3 problems", timeout=20_000)
    line.locator("summary").click()
    for number in (7, 17, 27):
        expect(line).to_contain_text(f"line {number},")
    page.get_by_role("button", name="Drop the bad rows").click()
    expect(page.locator("#mended")).to_contain_text("3 rows left out: lines 7, 17, 27", timeout=20_000)
    expect(line).to_contain_text("37 rows · messages · no problems")
    page.locator("#field-num_train_epochs input").fill("1")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#run-header .state")).to_contain_text("Finished", timeout=TRAINING_MS)


def test_the_estimate_moves_with_the_method_and_the_card(app: App, page: Page) -> None:
    page.goto(app.url)
    verdict = page.locator("#estimate .verdict")
    expect(verdict).to_contain_text("Fits", timeout=20_000)
    choose(page, "model", "Llama 3.1 8B")
    choose(page, "gpu", "RTX 4090")
    expect(verdict).to_contain_text(" of 24.0 GiB", timeout=10_000)
    page.get_by_label("Full", exact=True).check()
    expect(page.locator("#estimate .does_not_fit")).to_be_visible(timeout=10_000)
    page.locator("#fix-0").click()
    expect(page.locator("#estimate .fits")).to_be_visible(timeout=10_000)
    page.locator("#undo").click()
    expect(page.locator("#estimate .does_not_fit")).to_be_visible(timeout=10_000)
    page.get_by_label("QLoRA", exact=True).check()
    expect(page.locator("#estimate .fits")).to_be_visible(timeout=10_000)


def choose(page: Page, field: str, text: str) -> None:
    """Types into a searchable menu and takes the first that matches."""
    box = page.locator(f"#field-{field} input")
    box.click()
    box.press("Control+a")
    box.press_sequentially(text)
    page.get_by_role("option").first.click()
