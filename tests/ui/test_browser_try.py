"""Try tab in a real browser: the trained demo answers differently before and after."""

import os
import re
import signal

import pytest
from playwright.sync_api import Page, expect

from core import runs
from core.device import is_alive
from core.runs import Home
from core.runs.home import read_schedule
from tests.builders.browser import BROWSER_TESTS, App, press, wait_until_finished
from tests.builders.chat_runs import BASE_ANSWER, WHO

pytestmark = [*BROWSER_TESTS, pytest.mark.slow]
ANSWER_MS = 120_000
SHOWN = ".try-answers > div"


def test_the_trained_demo_says_who_it_is_and_is_corrected(app: App, page: Page, home: Home) -> None:
    page.goto(app.url)
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits")
    press(page, "Start training")
    wait_until_finished(page)
    (run,) = runs.listing.list_runs(home)
    _check(page)
    page.locator("#try-run").click()
    expect(page.locator("#try-left input")).to_have_value(re.compile("before"))
    page.get_by_text("Settings of answers").click()
    page.locator("#try-temperature input").fill("0")
    _ask(page, WHO)
    answers = page.locator(SHOWN)
    expect(answers).to_have_count(2)
    expect(answers.nth(0)).to_contain_text(BASE_ANSWER)
    expect(answers.nth(1)).to_contain_text("Pip")

    page.locator("#try-correct-right").click()
    page.locator("#try-edit textarea").fill("I am Pip.")
    page.locator("#try-keep").click()
    expect(page.locator("#try-status")).to_contain_text("Kept as a row")
    assert (home.uploads / "from-chat" / "chat-answers.jsonl").is_file()

    task = read_schedule(home).tasks["0"]
    assert task.child
    os.kill(task.child.pid, signal.SIGKILL)
    while is_alive(task.child):
        page.wait_for_timeout(50)
    _ask(page, WHO)  # which loads it again
    expect(page.locator(SHOWN)).to_have_count(4)

    app.end()
    assert runs.read(home, run.id).state == "finished"
    assert _is_gone(home)


def _check(page: Page) -> None:
    """Let both suites be asked: the demo learns who it is, and forgets some of the rest."""
    press(page, "Check before and after")
    results = page.locator("#check-results")
    expect(results).to_contain_text("gained more than chance", timeout=ANSWER_MS)
    expect(results).to_contain_text("0 of 100 before")
    expect(results).to_contain_text("36 of 36 before")
    lost = results.locator("summary").filter(has_text="Lost")
    lost.click()
    expect(results.locator("details[open]")).to_have_count(1)
    expect(page.locator("#run-list .facts")).to_contain_text(re.compile(r"identity [89]\d/100"))


def _ask(page: Page, message: str) -> None:
    box = page.locator("#try-message textarea")
    box.fill(message)
    box.press("Enter")
    expect(box).to_have_value("")
    expect(page.locator("#try-stop")).to_be_hidden(timeout=ANSWER_MS)
    expect(page.locator("#try-status")).to_contain_text("Answered", timeout=ANSWER_MS)


def _is_gone(home: Home) -> bool:
    """Return True if no living program holds the device."""
    return not any(task.is_held for task in read_schedule(home).tasks.values())
